//! A grid of answers as text: a table by task and length, and CSV with every cell.

use std::fmt::Write;

use crate::grid::{Answer, Count};
use crate::lengths::Length;

/// Tasks in the order in which they were asked.
pub fn tasks(answers: &[Answer]) -> Vec<&str> {
    let mut tasks = Vec::new();
    for answer in answers {
        if !tasks.contains(&answer.task.as_str()) {
            tasks.push(answer.task.as_str());
        }
    }
    tasks
}

/// Lengths, shortest first.
pub fn lengths(answers: &[Answer]) -> Vec<usize> {
    let mut lengths: Vec<usize> = answers.iter().map(|answer| answer.length).collect();
    lengths.sort_unstable();
    lengths.dedup();
    lengths
}

/// Depths, shallowest first.
pub fn depths(answers: &[Answer]) -> Vec<f32> {
    let mut depths: Vec<f32> = answers.iter().map(|answer| answer.depth).collect();
    depths.sort_unstable_by(f32::total_cmp);
    depths.dedup();
    depths
}

/// Right answers of each task at each length, all depths together; of several models by name, side by side.
pub fn by_length(models: &[(String, &[Answer])]) -> String {
    let all: Vec<Answer> = models
        .iter()
        .flat_map(|(_, answers)| answers.iter().cloned())
        .collect();
    let width = match models {
        [_] => 0,
        _ => models
            .iter()
            .map(|(name, _)| name.chars().count() + 2)
            .max()
            .unwrap_or(0),
    };
    let mut text = format!("{:<10}{:width$}", "tokens", "");
    for length in lengths(&all) {
        // Writing to a string cannot fail.
        let _ = write!(text, "{:>16}", Length(length));
    }
    text.push('\n');
    for task in tasks(&all) {
        for (name, answers) in models {
            let name = if width > 0 { name } else { "" };
            let _ = write!(text, "{task:<10}{name:<width$}");
            for length in lengths(&all) {
                let count = Count::of(answers, |answer| {
                    answer.task == task && answer.length == length
                });
                let percent = 100.0 * count.share();
                let cell = match count.asked {
                    0 => "-".to_owned(),
                    asked => format!("{percent:.0}% ({}/{asked})", count.correct),
                };
                let _ = write!(text, "{cell:>16}");
            }
            text.push('\n');
        }
    }
    text
}

/// One line per task, length and depth, with a header.
pub fn csv(answers: &[Answer]) -> String {
    let mut text = "task,length,depth_percent,correct,asked,share\n".to_owned();
    for task in tasks(answers) {
        for length in lengths(answers) {
            for depth in depths(answers) {
                let count = Count::of(answers, |answer| {
                    answer.task == task && answer.length == length && answer.depth == depth
                });
                if count.asked > 0 {
                    let _ = writeln!(
                        text,
                        "{task},{length},{depth},{},{},{}",
                        count.correct,
                        count.asked,
                        count.share()
                    );
                }
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(task: &str, length: usize, depth: f32, correct: bool) -> Answer {
        Answer {
            task: task.to_owned(),
            length,
            depth,
            sample: 0,
            expected: String::new(),
            said: String::new(),
            correct,
        }
    }

    #[test]
    fn cells_are_counted_by_task_length_and_depth() {
        let answers = [
            answer("passkey", 2048, 0.0, true),
            answer("passkey", 2048, 0.0, false),
            answer("passkey", 1024, 50.0, true),
            answer("uuid", 1024, 0.0, false),
        ];
        assert_eq!(
            csv(&answers),
            "task,length,depth_percent,correct,asked,share\n\
             passkey,1024,50,1,1,1\n\
             passkey,2048,0,1,2,0.5\n\
             uuid,1024,0,0,1,0\n"
        );
        let lines = |models: &[(String, &[Answer])]| -> Vec<String> {
            by_length(models)
                .lines()
                .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
                .collect()
        };
        let several = [
            ("a".to_owned(), &answers[..]),
            ("b".to_owned(), &answers[1..2]),
        ];
        assert_eq!(
            lines(&several)[1..3],
            ["passkey a 100% (1/1) 50% (1/2)", "passkey b - 0% (0/1)"]
        );
        assert_eq!(
            lines(&several[..1]),
            [
                "tokens 1K 2K",
                "passkey 100% (1/1) 50% (1/2)",
                "uuid 0% (0/1) -"
            ]
        );
    }
}

//! The real model behind the needle benchmarks: batches, pieces and branches change nothing.

use rwkvx_eval::language_model::Speaker;

use crate::support::small_model;

fn text(length: usize) -> Vec<u32> {
    let length = length as u32;
    (0..length)
        .map(|at| 1 + (at * at % 977 + 7 * at + length) % 256)
        .collect()
}

/// What the small model says to each prompt, and how many tokens were read.
fn said(prompts: &[&[u32]], enough: &dyn Fn(usize, &[u32]) -> bool) -> (Vec<Vec<u32>>, Vec<usize>) {
    let mut said = vec![Vec::new(); prompts.len()];
    let mut read = Vec::new();
    let mut on_said = |index: usize, row| {
        said[index] = row;
        Ok(())
    };
    small_model()
        .greedy(
            prompts,
            5,
            enough,
            &mut |tokens| read.push(tokens),
            &mut on_said,
        )
        .unwrap();
    (said, read)
}

#[test]
fn prompts_side_by_side_in_pieces_are_answered_as_each_alone() {
    // More tokens than are read at once, and another length.
    let prompts = [text(3000), text(3001)[1..].to_vec(), text(40)];
    let rows: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let (together, read) = said(&rows, &|_, _| false);
    assert!(
        read.len() > 2 && read.iter().sum::<usize>() == 6040,
        "{read:?}"
    );
    for (prompt, answer) in rows.iter().zip(together) {
        assert_eq!(answer.len(), 5);
        assert_eq!(said(&[prompt], &|_, _| false).0, [answer]);
    }
}

#[test]
fn long_prompts_with_common_beginnings_are_answered_as_each_alone() {
    let haystack = text(17_000);
    let with = |at: usize, needle: u32| {
        let mut prompt = haystack.clone();
        prompt.insert(at, needle);
        prompt
    };
    let mut prompts = [
        with(9_000, 1),
        with(100, 2),
        with(9_000, 3),
        with(16_990, 4),
        with(100, 2),
        haystack.clone(),
        haystack[..8_000].to_vec(),
        vec![5],
    ];
    prompts[0][16_000] = 200;
    let rows: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let (together, read) = said(&rows, &|_, _| false);
    assert_eq!(
        read.iter().sum::<usize>(),
        rows.iter().map(|row| row.len()).sum::<usize>()
    );
    for (index, prompt) in rows.iter().enumerate() {
        // Alone, and among prompts too short for branches.
        assert_eq!(
            said(&[prompt], &|_, _| false).0[0],
            together[index],
            "{index}"
        );
    }
}

#[test]
fn asking_ends_when_enough_is_said() {
    let short = text(20);
    let (answer, _) = said(&[&short], &|_, row| row.len() == 3);
    assert_eq!(answer[0].len(), 3);
    let long = text(17_000);
    let (answers, _) = said(&[&long, &long[1..]], &|index, row| row.len() == 2 + index);
    assert_eq!([answers[0].len(), answers[1].len()], [2, 3]);
}

#[test]
fn empty_prompts_are_refused() {
    for prompts in [[&[][..], &text(17_000)], [&[], &[]]] {
        let mut ignore = |_, _| Ok(());
        let refused = small_model().greedy(&prompts, 5, &|_, _| false, &mut |_| (), &mut ignore);
        assert!(
            refused
                .unwrap_err()
                .to_string()
                .contains("at least one token")
        );
    }
}

//! Charts as SVG that takes its colours from the page: lines, and heat maps of grids of answers.

use std::fmt::Write;

use minijinja::HtmlEscape;

use crate::grid::{Answer, Count};
use crate::lengths::Length;
use crate::table;

/// Size of a chart in its own units; text stays readable where a phone shrinks it.
const SIZE: (f64, f64) = (480.0, 300.0);
/// Room for the labels: left, top, right, bottom.
const MARGIN: (f64, f64, f64, f64) = (54.0, 12.0, 14.0, 44.0);
/// Colours that the page has for lines.
const COLOURS: usize = 6;
/// Most points of a line that are marked one by one.
const MARKED: usize = 40;

/// A line of a chart.
pub(super) struct Line {
    /// What the legend calls it.
    pub(super) name: String,
    /// Rising in x.
    pub(super) points: Vec<(f64, f64)>,
}

/// What stands along a chart.
pub(super) struct Axes {
    /// What is counted from left to right.
    pub(super) across: &'static str,
    /// Whether that is on a scale of powers of two.
    pub(super) doubling: bool,
    /// What is counted upwards.
    pub(super) unit: &'static str,
    /// Whether the chart begins at 0.
    pub(super) from_zero: bool,
}

/// A chart of lines.
pub(super) fn lines(lines: &[Line], axes: &Axes) -> String {
    let &Axes {
        across: counted,
        doubling,
        unit,
        from_zero,
    } = axes;
    let points = || lines.iter().flat_map(|line| &line.points);
    let range = |of: fn(&(f64, f64)) -> f64| {
        let values = points().map(of);
        let least = values.clone().fold(f64::INFINITY, f64::min);
        (least, values.fold(f64::NEG_INFINITY, f64::max))
    };
    let scale = |x: f64| if doubling { x.max(1.0).log2() } else { x };
    let (first, last) = range(|point| point.0);
    let (least, most) = range(|point| point.1);
    let y_ticks = ticks(if from_zero { 0.0 } else { least }, most);
    let (bottom, top) = (y_ticks[0], y_ticks[y_ticks.len() - 1]);
    let step = y_ticks[1] - bottom;
    let across = |x: f64| {
        let share = (scale(x) - scale(first)) / (scale(last) - scale(first)).max(f64::MIN_POSITIVE);
        MARGIN.0 + share * (SIZE.0 - MARGIN.0 - MARGIN.2)
    };
    let down = |y: f64| {
        let share = (y - bottom) / (top - bottom);
        SIZE.1 - MARGIN.3 - share * (SIZE.1 - MARGIN.1 - MARGIN.3)
    };

    let mut svg = open(SIZE, "chart");
    for y in y_ticks {
        let at = down(y);
        // Writing to a string cannot fail.
        let _ = write!(
            svg,
            "<line class=grid x1={} x2={} y1={at:.1} y2={at:.1} /><text class=end x={} y={:.1}>{}</text>",
            MARGIN.0,
            SIZE.0 - MARGIN.2,
            MARGIN.0 - 6.0,
            at + 4.0,
            number(y, step)
        );
    }
    let mut right_of_label = f64::NEG_INFINITY;
    let (x_ticks, x_step) = x_ticks(first, last, doubling);
    let x_exact = if doubling { 1.0 } else { x_step / 100.0 };
    for x in x_ticks {
        if across(x) > right_of_label + 26.0 {
            right_of_label = across(x) + 10.0;
            let label = match doubling {
                true => Length(x as usize).to_string(),
                false => number(x, x_step),
            };
            let _ = write!(
                svg,
                "<text class=middle x={:.1} y={}>{label}</text>",
                across(x),
                SIZE.1 - 26.0
            );
        }
    }
    let middle = (SIZE.0 + MARGIN.0) / 2.0;
    let _ = write!(
        svg,
        "<text class=middle x={middle} y={}>{counted}</text>",
        SIZE.1 - 6.0
    );
    for (index, line) in lines.iter().enumerate() {
        let colour = index % COLOURS;
        let path: Vec<String> = line
            .points
            .iter()
            .map(|&(x, y)| format!("{:.1},{:.1}", across(x), down(y)))
            .collect();
        let _ = write!(
            svg,
            "<polyline class=\"line c{colour}\" points=\"{}\" />",
            path.join(" ")
        );
        if line.points.len() > MARKED {
            continue;
        }
        for &(x, y) in &line.points {
            let _ = write!(
                svg,
                "<circle class=\"dot c{colour}\" cx={:.1} cy={:.1} r=3><title>{}: {} at {} {counted}, {unit}</title></circle>",
                across(x),
                down(y),
                HtmlEscape(&line.name),
                number(y, step / 100.0),
                number(x, x_exact)
            );
        }
    }
    svg + "</svg>"
}

fn open((width, height): (f64, f64), class: &str) -> String {
    format!("<svg class={class} viewBox=\"0 0 {width} {height}\" width={width} role=img>")
}

/// Three to eight round numbers that hold a range.
fn ticks(least: f64, most: f64) -> Vec<f64> {
    let span = (most - least).max(most.abs() * 1e-3).max(1e-9);
    let rough = span / 4.0;
    let magnitude = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .map(|factor| factor * magnitude)
        .into_iter()
        .find(|&step| step >= rough)
        .unwrap_or(rough);
    let first = (least / step).floor() as i64;
    let last = (most / step).ceil() as i64;
    (first..=last.max(first + 1))
        .map(|tick| tick as f64 * step)
        .collect()
}

/// Round numbers within a range, and the least distance from one to the next.
fn x_ticks(first: f64, last: f64, doubling: bool) -> (Vec<f64>, f64) {
    if !doubling {
        let all = ticks(first, last);
        let step = all[1] - all[0];
        let inside = all.into_iter().filter(|&x| first <= x && x <= last);
        return (inside.collect(), step);
    }
    let powers = (0..=63).map(|power| f64::from(power).exp2());
    let mut inside: Vec<f64> = powers.filter(|&x| first <= x && x <= last).collect();
    if inside.len() < 2 {
        inside = vec![first, last];
    }
    (inside, 1.0)
}

/// A number with as many digits as tell it from others `step` away.
fn number(value: f64, step: f64) -> String {
    let digits = (-step.log10().floor()).clamp(0.0, 9.0) as usize;
    format!("{value:.digits$}")
}

/// Width and height of a cell.
const CELL: (f64, f64) = (52.0, 24.0);
/// Room for depths on the left and lengths below.
const AXIS: (f64, f64) = (44.0, 22.0);

/// Shares of right answers of one task, length across, depth down.
pub(super) fn heat_map(answers: &[Answer]) -> String {
    let (lengths, depths) = (table::lengths(answers), table::depths(answers));
    let (right, bottom) = (
        AXIS.0 + CELL.0 * lengths.len() as f64,
        CELL.1 * depths.len() as f64,
    );
    let mut svg = open((right, bottom + AXIS.1), "map");
    for (row, &depth) in depths.iter().enumerate() {
        let top = CELL.1 * row as f64;
        let _ = write!(
            svg,
            "<text class=end x={} y={}>{depth:.0}%</text>",
            AXIS.0 - 6.0,
            top + 16.0
        );
        for (column, &length) in lengths.iter().enumerate() {
            let count = Count::of(answers, |answer| {
                answer.length == length && answer.depth == depth
            });
            if count.asked == 0 {
                continue;
            }
            let share = count.share();
            let left = AXIS.0 + CELL.0 * column as f64;
            // Ten steps of a ramp, whose light ones bear dark text.
            let step = (share * 10.0).round();
            let _ = write!(
                svg,
                "<g class=\"h{step}\"><rect x={} y={} width={} height={} /><text class=middle x={} y={}>{:.0}</text>\
                 <title>{} of {} at {} tokens, depth {depth:.0}%</title></g>",
                left + 1.0,
                top + 1.0,
                CELL.0 - 2.0,
                CELL.1 - 2.0,
                left + CELL.0 / 2.0,
                top + 16.0,
                100.0 * share,
                count.correct,
                count.asked,
                Length(length)
            );
        }
    }
    for (column, &length) in lengths.iter().enumerate() {
        let middle = AXIS.0 + CELL.0 * (column as f64 + 0.5);
        let _ = write!(
            svg,
            "<text class=middle x={middle} y={}>{}</text>",
            bottom + 16.0,
            Length(length)
        );
    }
    svg + "</svg>"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_hold_the_range() {
        assert_eq!(ticks(0.0, 10.0), [0.0, 5.0, 10.0]);
        assert_eq!(ticks(2.31, 3.94), [2.0, 2.5, 3.0, 3.5, 4.0]);
        for (least, most) in [(0.0, 0.0), (5.0, 5.0), (-1.0, 1e9), (1e-7, 2e-7)] {
            let ticks = ticks(least, most);
            assert!((2..=9).contains(&ticks.len()), "{ticks:?}");
            assert!(
                ticks[0] <= least && most <= ticks[ticks.len() - 1],
                "{ticks:?}"
            );
        }
        assert_eq!(x_ticks(1000.0, 5000.0, true).0, [1024.0, 2048.0, 4096.0]);
        assert_eq!(x_ticks(0.3, 1.2, false), (vec![0.5, 1.0], 0.5));
    }

    #[test]
    fn labels_are_told_apart() {
        assert_eq!(number(5.735, 0.005), "5.735");
        assert_eq!(number(2.5, 0.5), "2.5");
        assert_eq!(number(1200.0, 200.0), "1200");
    }

    #[test]
    fn a_chart_holds_its_lines_and_escapes_their_names() {
        let line = |name: &str, points: &[(f64, f64)]| Line {
            name: name.to_owned(),
            points: points.to_vec(),
        };
        let svg = lines(
            &[
                line("a<b", &[(1024.0, 3.0), (4096.0, 2.0)]),
                line("one", &[(2048.0, 2.5)]),
            ],
            &Axes {
                across: "tokens",
                doubling: true,
                unit: "nats",
                from_zero: false,
            },
        );
        assert_eq!(
            (
                svg.matches("<polyline").count(),
                svg.matches("<circle").count()
            ),
            (2, 3)
        );
        assert!(svg.contains("a&lt;b: 3.000 at 1024 tokens, nats") && !svg.contains("a<b"));
        assert!(svg.contains(">2K</text>") && !svg.contains("NaN") && !svg.contains("inf"));
    }
}

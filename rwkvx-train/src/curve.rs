//! The loss curve of a run as a picture.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Once;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::register_font;

use crate::journal::Line;
use crate::phase::Phase;
use crate::{Error, Result};

const SIZE: (u32, u32) = (1200, 700);
const FONT: &str = "sans-serif";
/// One colour per phase, told apart in grey and by most colour-blind eyes (Okabe and Ito).
const COLOURS: [(Phase, RGBColor); 5] = [
    (Phase::Base, RGBColor(0, 114, 178)),
    (Phase::Stage1, RGBColor(230, 159, 0)),
    (Phase::Stage2, RGBColor(0, 158, 115)),
    (Phase::Rwkv7Stage1, RGBColor(204, 121, 167)),
    (Phase::Rwkv7Stage2, RGBColor(100, 100, 100)),
];

/// Draws the unweighted loss over the tokens seen, to `loss.svg` and `loss.png` in `directory`.
///
/// # Errors
///
/// If a picture cannot be drawn or written.
pub fn draw(lines: &[Line], directory: &Path) -> Result<()> {
    register_fonts();
    let series = series(lines);
    let svg = directory.join("loss.svg");
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        draw_on(&area, &series).map_err(|reason| curve_error(&svg, reason))?;
    }
    fs::write(&svg, text).map_err(Error::io(&svg))?;

    let png = directory.join("loss.png");
    let area = BitMapBackend::new(&png, SIZE).into_drawing_area();
    draw_on(&area, &series).map_err(|reason| curve_error(&png, reason))
}

fn curve_error(path: &Path, reason: String) -> Error {
    Error::Curve {
        path: path.to_path_buf(),
        reason,
    }
}

/// Plotters draws text with fonts that the program brings.
fn register_fonts() {
    static REGISTERED: Once = Once::new();
    REGISTERED.call_once(|| {
        // It fails only for a font that cannot be parsed; text is then missing, which the drawing reports.
        let _ = register_font(FONT, FontStyle::Normal, dejavu::sans::regular());
    });
}

/// Points (million tokens, nats) of each phase. The comparison starts where the base ended, beside stage 1.
fn series(lines: &[Line]) -> BTreeMap<Phase, Vec<(f64, f64)>> {
    let mut last_tokens: BTreeMap<Phase, u64> = BTreeMap::new();
    for line in lines {
        last_tokens.insert(line.stage, line.tokens);
    }
    let before = |phase: Phase| -> u64 {
        let earlier: &[Phase] = match phase {
            Phase::Base => &[],
            Phase::Stage1 | Phase::Rwkv7Stage1 => &[Phase::Base],
            Phase::Stage2 => &[Phase::Base, Phase::Stage1],
            Phase::Sft => &[Phase::Base, Phase::Stage1, Phase::Stage2],
            Phase::Rwkv7Stage2 => &[Phase::Base, Phase::Rwkv7Stage1],
        };
        earlier
            .iter()
            .filter_map(|phase| last_tokens.get(phase))
            .sum()
    };
    let mut series: BTreeMap<Phase, Vec<(f64, f64)>> = BTreeMap::new();
    for line in lines {
        let tokens = (before(line.stage) + line.tokens) as f64 / 1e6;
        series
            .entry(line.stage)
            .or_default()
            .push((tokens, line.nll));
    }
    series
}

fn draw_on<DB: DrawingBackend>(
    area: &DrawingArea<DB, Shift>,
    series: &BTreeMap<Phase, Vec<(f64, f64)>>,
) -> std::result::Result<(), String> {
    let points = || series.values().flatten();
    let last = points().map(|point| point.0).fold(0.0, f64::max).max(1e-6);
    let top = points().map(|point| point.1).fold(0.0, f64::max).max(1e-6);
    (|| {
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(area)
            .margin(20)
            .caption("Loss", (FONT, 24))
            .x_label_area_size(50)
            .y_label_area_size(60)
            .build_cartesian_2d(0.0..last, 0.0..top * 1.05)?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(BLACK.mix(0.12))
            .label_style((FONT, 16))
            .axis_desc_style((FONT, 18))
            .x_desc("million tokens")
            .y_desc("nats per token")
            .draw()?;
        for (phase, points) in series {
            let colour = COLOURS
                .iter()
                .find(|(known, _)| known == phase)
                .map_or(BLACK, |(_, colour)| *colour);
            chart.draw_series(LineSeries::new(points.iter().copied(), colour.mix(0.25)))?;
            chart
                .draw_series(LineSeries::new(smoothed(points), colour.stroke_width(2)))?
                .label(phase.name())
                .legend(move |(x, y)| {
                    PathElement::new([(x, y), (x + 24, y)], colour.stroke_width(3))
                });
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .background_style(WHITE.mix(0.85))
            .border_style(BLACK.mix(0.3))
            .label_font((FONT, 16))
            .draw()?;
        area.present()
    })()
    .map_err(|error: DrawingAreaErrorKind<DB::ErrorType>| error.to_string())
}

/// Moving average over a fortieth of the points, centred.
fn smoothed(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let reach = points.len() / 80;
    (0..points.len())
        .map(|index| {
            let window =
                &points[index.saturating_sub(reach)..(index + reach + 1).min(points.len())];
            let mean = window.iter().map(|point| point.1).sum::<f64>() / window.len() as f64;
            (points[index].0, mean)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::Speed;

    fn lines() -> Vec<Line> {
        let phases = [
            (Phase::Base, 60),
            (Phase::Stage1, 20),
            (Phase::Stage2, 30),
            (Phase::Rwkv7Stage1, 20),
        ];
        let mut lines = Vec::new();
        for (phase, steps) in phases {
            for step in 1..=steps {
                lines.push(Line {
                    stage: phase,
                    step,
                    loss: 1.0,
                    nll: 5.0 / step as f64 + phase as u64 as f64 * 0.1,
                    answer_nll: None,
                    lr: 1e-3,
                    tokens: 4096 * step,
                    speed: Speed::default(),
                    grad_norm: 1.0,
                    skipped: 0,
                });
            }
        }
        lines
    }

    #[test]
    fn phases_follow_each_other_and_the_comparison_runs_beside() {
        let series = series(&lines());
        let first = |phase| series[&phase][0].0;
        let last = |phase: Phase| series[&phase][series[&phase].len() - 1].0;
        assert_eq!(first(Phase::Stage1), first(Phase::Rwkv7Stage1));
        assert!(last(Phase::Base) < first(Phase::Stage1));
        assert!(last(Phase::Stage1) < first(Phase::Stage2));
    }

    #[test]
    fn both_pictures_are_written_even_without_a_single_step() {
        for lines in [lines(), Vec::new()] {
            let run = tempfile::tempdir().unwrap();
            draw(&lines, run.path()).unwrap();
            let png = std::fs::read(run.path().join("loss.png")).unwrap();
            assert!(png.starts_with(b"\x89PNG") && png.len() > 2_000);
            let svg = std::fs::read_to_string(run.path().join("loss.svg")).unwrap();
            assert!(svg.contains("nats per token"));
        }
    }
}

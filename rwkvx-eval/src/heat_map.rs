//! A grid of answers as a picture: length across, depth down, one panel per task.

use std::path::Path;
use std::sync::Once;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::register_font;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::grid::{Answer, Count};
use crate::lengths::Length;
use crate::{Error, Result, table};

const FONT: &str = "sans-serif";
const TEXT: RGBColor = RGBColor(40, 40, 40);
/// Viridis: even steps look even, also in grey and to colour-blind eyes.
const RAMP: [RGBColor; 5] = [
    RGBColor(68, 1, 84),
    RGBColor(59, 82, 139),
    RGBColor(33, 145, 140),
    RGBColor(94, 201, 98),
    RGBColor(253, 231, 37),
];
/// Pixels.
const CELL: (i32, i32) = (84, 40);
const MARGIN: i32 = 24;
const TITLE: i32 = 56;
const PANEL_TITLE: i32 = 36;
/// Room for depths on the left and lengths below.
const AXIS: (i32, i32) = (96, 64);
/// A title needs this much even above a single column.
const LEAST_WIDTH: i32 = 760;

/// Draws the share of right answers in each cell to a PNG.
///
/// # Errors
///
/// If the picture cannot be drawn or written.
pub fn draw(answers: &[Answer], title: &str, path: &Path) -> Result<()> {
    register_fonts();
    let grid = Grid {
        answers,
        lengths: table::lengths(answers),
        depths: table::depths(answers),
    };
    let failed = |reason: String| Error::Picture {
        path: path.to_path_buf(),
        reason,
    };
    // Drawn beside and renamed; the ending tells the drawing library the format.
    let beside = path.with_extension("partial.png");
    let tasks = table::tasks(answers);
    let (width, height) = grid.size(tasks.len());
    {
        let area = BitMapBackend::new(&beside, (width as u32, height as u32)).into_drawing_area();
        grid.draw(&area, title, &tasks)
            .map_err(|error| failed(error.to_string()))?;
    }
    std::fs::rename(&beside, path).map_err(Error::io(path))
}

/// Plotters draws text with fonts that the program brings.
fn register_fonts() {
    static REGISTERED: Once = Once::new();
    REGISTERED.call_once(|| {
        // It fails only for a font that cannot be parsed; text is then missing, which the drawing reports.
        let _ = register_font(FONT, FontStyle::Normal, dejavu::sans::regular());
    });
}

struct Grid<'a> {
    answers: &'a [Answer],
    lengths: Vec<usize>,
    depths: Vec<f32>,
}

type Drawn = std::result::Result<(), Box<dyn std::error::Error>>;
type Area<'a> = DrawingArea<BitMapBackend<'a>, Shift>;

impl Grid<'_> {
    fn panel_width(&self) -> i32 {
        AXIS.0 + CELL.0 * self.lengths.len() as i32
    }

    fn size(&self, panels: usize) -> (i32, i32) {
        let width = 2 * MARGIN + (self.panel_width() + MARGIN) * panels as i32;
        let height = TITLE + PANEL_TITLE + CELL.1 * self.depths.len() as i32 + AXIS.1 + MARGIN;
        (width.max(LEAST_WIDTH), height)
    }

    fn draw(&self, area: &Area<'_>, title: &str, tasks: &[&str]) -> Drawn {
        area.fill(&WHITE)?;
        let title_style = style(22, HPos::Left);
        area.draw(&Text::new(title, (MARGIN, TITLE / 2), title_style))?;
        for (index, task) in tasks.iter().enumerate() {
            let left = MARGIN + (self.panel_width() + MARGIN) * index as i32 + AXIS.0;
            self.draw_panel(area, task, (left, TITLE + PANEL_TITLE))?;
        }
        area.present()?;
        Ok(())
    }

    /// One task, its first cell at `origin`.
    fn draw_panel(&self, area: &Area<'_>, task: &str, (left, top): (i32, i32)) -> Drawn {
        let middle = left + CELL.0 * self.lengths.len() as i32 / 2;
        let bottom = top + CELL.1 * self.depths.len() as i32;
        let centred = |size| style(size, HPos::Center);
        area.draw(&Text::new(
            task,
            (middle, top - PANEL_TITLE / 2),
            centred(20),
        ))?;
        for (column, &length) in self.lengths.iter().enumerate() {
            let x = left + CELL.0 * column as i32;
            let label = Length(length).to_string();
            area.draw(&Text::new(
                label,
                (x + CELL.0 / 2, bottom + 16),
                centred(15),
            ))?;
            for (row, &depth) in self.depths.iter().enumerate() {
                let y = top + CELL.1 * row as i32;
                self.draw_cell(area, (task, length, depth), (x, y))?;
            }
        }
        for (row, depth) in self.depths.iter().enumerate() {
            let y = top + CELL.1 * row as i32 + CELL.1 / 2;
            let label = format!("{depth:.0}%");
            area.draw(&Text::new(label, (left - 10, y), style(15, HPos::Right)))?;
        }
        area.draw(&Text::new("tokens", (middle, bottom + 44), centred(16)))?;
        let depth = style(16, HPos::Left);
        area.draw(&Text::new(
            "depth",
            (left - AXIS.0 + 4, top - PANEL_TITLE / 2),
            depth,
        ))?;
        Ok(())
    }

    fn draw_cell(
        &self,
        area: &Area<'_>,
        (task, length, depth): (&str, usize, f32),
        (x, y): (i32, i32),
    ) -> Drawn {
        let count = Count::of(self.answers, |answer| {
            answer.task == task && answer.length == length && answer.depth == depth
        });
        if count.asked == 0 {
            return Ok(());
        }
        let share = count.share();
        let corners = [(x + 1, y + 1), (x + CELL.0 - 1, y + CELL.1 - 1)];
        area.draw(&Rectangle::new(corners, colour(share).filled()))?;
        let text = if share < 0.6 { WHITE } else { BLACK };
        let label = format!("{:.0}%", 100.0 * share);
        let place = (x + CELL.0 / 2, y + CELL.1 / 2);
        area.draw(&Text::new(
            label,
            place,
            style(15, HPos::Center).color(&text),
        ))?;
        Ok(())
    }
}

fn style(size: u32, horizontal: HPos) -> TextStyle<'static> {
    TextStyle::from((FONT, size).into_font())
        .color(&TEXT)
        .pos(Pos::new(horizontal, VPos::Center))
}

/// The colour of a share from 0 to 1.
fn colour(share: f64) -> RGBColor {
    let place = share.clamp(0.0, 1.0) * (RAMP.len() - 1) as f64;
    let below = (place as usize).min(RAMP.len() - 2);
    let between = place - below as f64;
    let mix = |a: u8, b: u8| (f64::from(a) + between * (f64::from(b) - f64::from(a))).round() as u8;
    let (a, b) = (RAMP[below], RAMP[below + 1]);
    RGBColor(mix(a.0, b.0), mix(a.1, b.1), mix(a.2, b.2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_colours_run_from_dark_to_light() {
        let light = |share| {
            let RGBColor(r, g, b) = colour(share);
            0.2126 * f64::from(r) + 0.7152 * f64::from(g) + 0.0722 * f64::from(b)
        };
        let shares: Vec<f64> = (0..=20).map(|share| f64::from(share) / 20.0).collect();
        assert!(
            shares
                .windows(2)
                .all(|pair| light(pair[0]) < light(pair[1]))
        );
        assert_eq!((colour(0.0), colour(1.0)), (RAMP[0], RAMP[4]));
    }
}

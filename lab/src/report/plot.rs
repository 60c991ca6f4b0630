use plotters::coord::Shift;
use plotters::prelude::*;

use super::{Measured, Report, figures};
use crate::BoxError;
use crate::round::Round;

const BEFORE: RGBColor = RGBColor(180, 83, 9);
const AFTER: RGBColor = RGBColor(29, 111, 184);
const INK: RGBColor = RGBColor(55, 65, 81);
const GRID: RGBColor = RGBColor(229, 231, 235);

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

pub(super) fn render(report: &Report) -> Result<String, BoxError> {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (860, 400)).into_drawing_area();
        root.fill(&WHITE)?;
        let root = root.titled(&report.title, ("sans-serif", 22).into_font().color(&INK))?;
        let (key, panels) = root.split_vertically(26);
        draw_key(&key, report)?;
        let (left, right) = panels.split_horizontally(430);
        draw_panel(&left, report, &format!("{} a second", report.unit), |round| Some(round.per_second))?;
        draw_panel(&right, report, "p99, ms", |round| round.p99_ms)?;
        root.present()?;
    }
    Ok(svg)
}

/// Which colour is which arm.
fn draw_key(area: &Area<'_>, report: &Report) -> Result<(), BoxError> {
    let arms = [(BEFORE, "before", &report.before, 20), (AFTER, "after", &report.after, 450)];
    for (colour, side, arm, x) in arms {
        area.draw(&Circle::new((x, 12), 4, colour.filled()))?;
        let text = format!("{side}: {}", arm.label);
        area.draw(&Text::new(text, (x + 10, 5), ("sans-serif", 16).into_font().color(&INK)))?;
    }
    Ok(())
}

/// One quantity: each round as a point, each arm's median as a line. The scale starts at zero, so that
/// heights compare as the numbers do.
fn draw_panel(
    area: &Area<'_>,
    report: &Report,
    heading: &str,
    value: fn(&Round) -> Option<f64>,
) -> Result<(), BoxError> {
    let rounds = report.before.rounds.len().max(report.after.rounds.len()).max(1);
    let points = |arm: &Measured| -> Vec<(f64, f64)> {
        let values = arm.rounds.iter().enumerate();
        values.filter_map(|(index, round)| Some((index as f64 + 1.0, value(round)?))).collect()
    };
    let highest =
        [&report.before, &report.after].into_iter().flat_map(points).map(|(_, y)| y).fold(0.0, f64::max);
    let top = if highest > 0.0 { highest * 1.1 } else { 1.0 };
    let mut chart = ChartBuilder::on(area)
        .caption(heading, ("sans-serif", 16).into_font().color(&INK))
        .margin(8)
        .x_label_area_size(38)
        .y_label_area_size(74)
        .build_cartesian_2d(0.5..rounds as f64 + 0.5, 0.0..top)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .bold_line_style(GRID)
        .max_light_lines(0)
        .axis_style(INK)
        .label_style(("sans-serif", 14).into_font().color(&INK))
        .x_labels(rounds.min(10))
        .x_label_formatter(&|x| if x.fract() == 0.0 { format!("{x:.0}") } else { String::new() })
        .y_label_formatter(&|y| figures::tick(*y))
        .x_desc("round")
        .draw()?;
    for (arm, colour) in [(&report.before, BEFORE), (&report.after, AFTER)] {
        let points = points(arm);
        let mut heights: Vec<f64> = points.iter().map(|(_, y)| *y).collect();
        if let Some(median) = crate::ratio::median(&mut heights) {
            let line = [(0.5, median), (rounds as f64 + 0.5, median)];
            chart.draw_series(LineSeries::new(line, colour.stroke_width(2)))?;
        }
        chart.draw_series(points.into_iter().map(|point| Circle::new(point, 4, colour.filled())))?;
    }
    Ok(())
}

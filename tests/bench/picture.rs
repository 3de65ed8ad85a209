//! The figures as bars: how far each is from its goal. Readable on light and on dark.

use crate::figures::{Figure, number};

const WIDTH: f64 = 860.0;
const LINE: f64 = 26.0;
const TOP: f64 = 62.0;
/// Where names end, where the goal stands, and how wide a bar of ten times the goal is.
const NAMES: f64 = 190.0;
const GOAL: f64 = 300.0;
const DECADE: f64 = 150.0;

const STYLE: &str = "text{font:13px system-ui,sans-serif;fill:#24292f}.small{font-size:11px;fill:#57606a}.met{fill:#1a7f37}.missed{fill:#bc4c00}\
.goal{stroke:#57606a;stroke-width:1.5}.page{fill:#ffffff}\
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.small{fill:#9198a1}.met{fill:#3fb950}.missed{fill:#f0883e}.goal{stroke:#9198a1}.page{fill:#0d1117}}";

/// The picture, as SVG.
pub fn draw(figures: &[Figure]) -> String {
    let height = TOP + LINE * figures.len() as f64 + 20.0;
    let bars: String = figures.iter().enumerate().map(|(number, figure)| bar(figure, TOP + LINE * number as f64)).collect();
    let bottom = height - 14.0;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"Measured ratios relative to their goals\">\
         <style>{STYLE}</style><rect class=\"page\" width=\"{WIDTH}\" height=\"{height}\"/>\n\
         <text x=\"16\" y=\"24\">What was measured, relative to its goal</text>\
         <text class=\"small\" x=\"16\" y=\"42\">right of the line: better than the goal, so many times; each 150 units ten times</text>\n\
         {bars}<line class=\"goal\" x1=\"{GOAL}\" y1=\"{}\" x2=\"{GOAL}\" y2=\"{bottom}\"/>\n</svg>\n",
        TOP - 10.0
    )
}

fn bar(figure: &Figure, top: f64) -> String {
    let name = format!("<text x=\"{NAMES}\" y=\"{}\" text-anchor=\"end\">{}</text>", top + 12.0, figure.row);
    if figure.failure.is_some() {
        return format!("{name}<text class=\"small\" x=\"{}\" y=\"{}\">failed</text>\n", GOAL + 8.0, top + 12.0);
    }
    let room = figure.goal.room(figure.ratio);
    let length = (room.log10() * DECADE).clamp(-90.0, 330.0);
    let (class, x) = if figure.met() { ("met", GOAL) } else { ("missed", GOAL + length) };
    let label = format!("{} (goal {}), {} ×", number(figure.ratio), figure.goal.text(), number(room));
    format!(
        "{name}<rect class=\"{class}\" x=\"{x:.1}\" y=\"{top}\" width=\"{:.1}\" height=\"16\" rx=\"2\"/><text class=\"small\" x=\"{:.1}\" y=\"{}\">{label}</text>\n",
        length.abs().max(1.5),
        GOAL + length.max(0.0) + 8.0,
        top + 12.0
    )
}

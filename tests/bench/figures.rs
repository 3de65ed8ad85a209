//! Figures: what was measured, against what, and whether that is as good as it should be.

use serde_json::{Value, json};

/// What a ratio should be.
#[derive(Debug, Clone, Copy)]
pub enum Goal {
    /// No more.
    AtMost(f64),
    /// No less.
    AtLeast(f64),
}

impl Goal {
    /// Whether a ratio reaches it.
    pub fn met(self, ratio: f64) -> bool {
        self.room(ratio) >= 1.0
    }

    /// How many times better than the goal a ratio is; below 1 it misses it.
    pub fn room(self, ratio: f64) -> f64 {
        match self {
            // A tie at nothing (no calls at all, say) is reached.
            Self::AtMost(most) if ratio <= 0.0 => most + 1.0,
            Self::AtMost(most) => most / ratio,
            Self::AtLeast(least) => ratio / least,
        }
    }

    fn limit(self) -> f64 {
        match self {
            Self::AtMost(limit) | Self::AtLeast(limit) => limit,
        }
    }

    /// As people write it.
    pub fn text(self) -> String {
        match self {
            Self::AtMost(most) => format!("≤ {}", number(most)),
            Self::AtLeast(least) => format!("≥ {}", number(least)),
        }
    }
}

/// One line of the table.
#[derive(Debug, Clone)]
pub struct Figure {
    /// The row, and which of its goals behind a blank.
    pub row: String,
    /// What it is measured against.
    pub against: String,
    /// What both figures are counted in.
    pub unit: String,
    /// What it is measured against; nothing where the goal stands by itself.
    pub baseline: Option<f64>,
    /// Ours.
    pub value: f64,
    /// What the goal speaks of.
    pub ratio: f64,
    /// The least and the greatest ratio of the rounds.
    pub spread: (f64, f64),
    /// The goal.
    pub goal: Goal,
    /// What else was seen.
    pub notes: String,
    /// Why there is no figure.
    pub failure: Option<String>,
}

/// What rounds brought in turns.
#[derive(Debug, Default)]
pub struct Rounds {
    /// Ours.
    pub ours: Vec<f64>,
    /// The other one's.
    pub baseline: Vec<f64>,
}

impl Rounds {
    /// A figure whose ratio is ours by theirs.
    pub fn ours_by_theirs(&self, row: &str, against: &str, unit: &str, goal: Goal) -> Figure {
        self.figure(row, against, unit, goal, |ours, theirs| ours / theirs)
    }

    /// A figure whose ratio is theirs by ours: how many times faster we are.
    pub fn theirs_by_ours(&self, row: &str, against: &str, unit: &str, goal: Goal) -> Figure {
        self.figure(row, against, unit, goal, |ours, theirs| theirs / ours)
    }

    fn figure(&self, row: &str, against: &str, unit: &str, goal: Goal, ratio: fn(f64, f64) -> f64) -> Figure {
        let (value, baseline) = (median(&self.ours), median(&self.baseline));
        // A round of ours beside the round of theirs that was next to it.
        let each: Vec<f64> = self.ours.iter().zip(&self.baseline).map(|(ours, theirs)| ratio(*ours, *theirs)).collect();
        let figure = Figure::plain(row, against, unit, value, goal);
        Figure { baseline: Some(baseline), ratio: ratio(value, baseline), spread: range(&each), ..figure }
    }
}

impl Figure {
    /// A figure that is its own ratio.
    pub fn plain(row: &str, against: &str, unit: &str, value: f64, goal: Goal) -> Self {
        Self {
            row: row.to_owned(),
            against: against.to_owned(),
            unit: unit.to_owned(),
            baseline: None,
            value,
            ratio: value,
            spread: (value, value),
            goal,
            notes: String::new(),
            failure: None,
        }
    }

    /// A row without a figure.
    pub fn failed(row: &str, reason: &str) -> Self {
        let nothing = Self::plain(row, "", "", f64::NAN, Goal::AtMost(0.0));
        Self { failure: Some(reason.to_owned()), ..nothing }
    }

    /// The same with something to say.
    #[must_use]
    pub fn noting(self, notes: impl Into<String>) -> Self {
        Self { notes: notes.into(), ..self }
    }

    /// Whether the goal is reached.
    pub fn met(&self) -> bool {
        self.failure.is_none() && self.goal.met(self.ratio)
    }
}

/// The middle one; the mean of the two in the middle.
pub fn median(values: &[f64]) -> f64 {
    assert!(!values.is_empty(), "nothing was measured");
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let half = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[half] } else { f64::midpoint(sorted[half - 1], sorted[half]) }
}

/// The least and the greatest.
pub fn range(values: &[f64]) -> (f64, f64) {
    values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(lo, hi), value| (lo.min(*value), hi.max(*value)))
}

/// Three digits that count.
pub fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 99.95 => format!("{value:.0}"),
        size if size >= 9.995 => format!("{value:.1}"),
        size if size >= 0.9995 || size == 0.0 => format!("{value:.2}").trim_end_matches('0').trim_end_matches('.').to_owned(),
        _ => format!("{value:.3}"),
    }
}

fn cells(figure: &Figure) -> [String; 7] {
    if let Some(reason) = &figure.failure {
        return [
            figure.row.clone(),
            "FAILED".to_owned(),
            reason.clone(),
            String::new(),
            String::new(),
            String::new(),
            "no".to_owned(),
        ];
    }
    let with_unit = |value: f64| format!("{} {}", number(value), figure.unit).trim_end().to_owned();
    let (least, most) = figure.spread;
    [
        figure.row.clone(),
        figure.baseline.map(with_unit).unwrap_or_default(),
        with_unit(figure.value),
        number(figure.ratio),
        format!("{}–{}", number(least), number(most)),
        figure.goal.text(),
        if figure.met() { "yes" } else { "NO" }.to_owned(),
    ]
}

const HEAD: [&str; 7] = ["row", "baseline", "ours", "ratio", "spread", "goal", "met"];

/// The table for people.
pub fn table(figures: &[Figure]) -> String {
    let lines: Vec<[String; 7]> = std::iter::once(HEAD.map(str::to_owned)).chain(figures.iter().map(cells)).collect();
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..HEAD.len()).map(width).collect();
    let mut text = String::new();
    for (line, figure) in lines.iter().zip(std::iter::once(None).chain(figures.iter().map(Some))) {
        let padded: Vec<String> = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(padded.join("  ").trim_end());
        text.push('\n');
        for note in figure.iter().flat_map(|figure| figure.notes.lines()) {
            text.push_str(&format!("    {note}\n"));
        }
    }
    text
}

/// The lines of a table in Markdown.
pub fn markdown(figures: &[Figure]) -> String {
    let mut lines = vec![line(&HEAD.map(str::to_owned)), "| --- | --- | --- | --- | --- | --- | --- |".to_owned()];
    lines.extend(figures.iter().map(|figure| line(&cells(figure))));
    lines.join("\n") + "\n"
}

fn line(cells: &[String]) -> String {
    format!("| {} |", cells.join(" | "))
}

/// A figure that [`json`] wrote; none where it failed.
pub fn read(value: &Value) -> Option<Figure> {
    let (text, number) = (|name: &str| value[name].as_str().unwrap_or_default().to_owned(), |name: &str| value[name].as_f64());
    let goal = if value["at-most"] == true { Goal::AtMost(number("limit")?) } else { Goal::AtLeast(number("limit")?) };
    let (ratio, spread) = (number("ratio")?, (value["spread"][0].as_f64()?, value["spread"][1].as_f64()?));
    let figure = Figure::plain(&text("row"), &text("against"), &text("unit"), number("value")?, goal);
    Some(Figure { baseline: number("baseline"), ratio, spread, notes: text("notes"), ..figure })
}

/// What `results.json` holds.
pub fn json(figures: &[Figure]) -> String {
    let one = |figure: &Figure| -> Value {
        json!({
            "row": figure.row, "baseline": figure.baseline, "value": figure.value, "ratio": figure.ratio, "goal": figure.goal.text(), "met": figure.met(),
            "unit": figure.unit, "against": figure.against, "spread": [figure.spread.0, figure.spread.1], "notes": figure.notes, "failure": figure.failure,
            "line": line(&cells(figure)), "limit": figure.goal.limit(), "at-most": matches!(figure.goal, Goal::AtMost(_)),
            "command": format!("BENCH_ROWS={} make bench", figure.row.split(' ').next().unwrap_or_default()),
        })
    };
    format!("{:#}\n", Value::Array(figures.iter().map(one).collect()))
}

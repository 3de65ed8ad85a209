//! The figures in `docs/performance.md`: written by the program that measured them, so that both agree.

use crate::figures::{Figure, markdown};
use crate::picture;
use bwvisu_tests::bed::repository;
use std::fs;

const BEGIN: &str = "<!-- figures: begin -->\n";
const END: &str = "<!-- figures: end -->\n";

/// Writes table, notes and picture.
pub fn write(figures: &[Figure]) {
    let path = repository().join("docs/performance.md");
    let text = fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once(BEGIN).expect("a place for the figures");
    let (_, after) = rest.split_once(END).expect("its end");
    fs::write(&path, format!("{before}{BEGIN}{}{END}{after}", section(figures))).unwrap();
    fs::write(repository().join("docs/images/performance.svg"), picture::draw(figures)).unwrap();
}

fn section(figures: &[Figure]) -> String {
    let noted = figures.iter().filter(|figure| !figure.notes.is_empty());
    let notes: String =
        noted.map(|figure| format!("- **{}**: against {}. {}.\n", figure.row, figure.against, figure.notes)).collect();
    format!("{}\n{notes}", markdown(figures))
}

//! Bars, as SVG: what is compared, side by side.

use crate::figures::figure;
use std::fmt::Write as _;

/// A group of bars with a title.
#[derive(Debug)]
pub struct Group {
    /// What is shown, and in which unit.
    pub title: String,
    /// Label and value of each bar; ours first.
    pub bars: Vec<(String, f64)>,
}

const WIDTH: f64 = 720.0;
const LABEL: f64 = 190.0;
const ROOM: f64 = WIDTH - LABEL - 80.0;
const LINE: f64 = 20.0;

/// Draws groups one below the other, each to its own scale.
#[must_use]
pub fn bars(title: &str, groups: &[Group]) -> String {
    let (mut body, mut y) = (String::new(), 30.0);
    let _ = writeln!(body, r#"<text x="10" y="20" font-weight="bold">{}</text>"#, escape(title));
    for group in groups {
        y += 14.0;
        let _ = writeln!(body, r#"<text x="10" y="{y}" font-style="italic">{}</text>"#, escape(&group.title));
        y += 8.0;
        let most = group.bars.iter().map(|b| b.1).fold(f64::MIN_POSITIVE, f64::max);
        for (n, (label, value)) in group.bars.iter().enumerate() {
            let (width, text) = (value / most * ROOM, y + 14.0);
            let colour = if n == 0 { "#1f6fb4" } else { "#b0b8c0" };
            let _ = writeln!(
                body,
                r#"<text x="{}" y="{text}" text-anchor="end">{}</text><rect x="{LABEL}" y="{y}" width="{width:.1}" height="16" fill="{colour}"/><text x="{:.1}" y="{text}">{}</text>"#,
                LABEL - 6.0,
                escape(label),
                LABEL + width + 6.0,
                figure(*value)
            );
            y += LINE;
        }
        y += 8.0;
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {y}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n{body}</svg>\n"
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_bar_fills_the_room_and_the_others_their_part() {
        let bars = vec![("a".to_owned(), 10.0), ("b<c".to_owned(), 5.0)];
        let drawn = super::bars("t & u", &[Group { title: "MB/s".to_owned(), bars }]);
        assert!(
            drawn.contains(&format!("width=\"{ROOM:.1}\"")) && drawn.contains(&format!("width=\"{:.1}\"", ROOM / 2.0))
        );
        assert!(drawn.contains("b&lt;c") && drawn.contains("t &amp; u") && drawn.starts_with("<svg"));
    }
}

//! A comparison as Markdown, fit for a comment on a pull request.
//!
//! Names come from other people's files: nothing in them may end a cell or become markup.

use std::fmt::Write as _;

use super::diff::Diff;
use super::names::{few, words};
use super::{Book, Line};
use crate::cluster::Verdict;
use crate::cluster::matrix::Matrix;

/// Rows at most: a comment has a limit, and so has patience.
const MOST_ROWS: usize = 60;
/// Names in a cell at most.
const MOST_NAMES: usize = 6;

/// What a page is written from.
#[derive(Clone, Copy, Debug)]
pub struct Parts<'a> {
    /// The comparison.
    pub diff: &'a Diff,
    /// Endpoints and ports.
    pub matrix: &'a Matrix,
    /// Policies before.
    pub before: &'a Book<'a>,
    /// Policies afterwards.
    pub after: &'a Book<'a>,
    /// Endpoints that only the old version has.
    pub gone: &'a [String],
    /// Endpoints that only the new version has.
    pub new: &'a [String],
    /// Lines of the list that nothing fulfils.
    pub unused: &'a [String],
}

/// The headline: how many verdicts change.
pub fn headline(parts: &Parts<'_>) -> String {
    let (diff, matrix) = (parts.diff, parts.matrix);
    let change = |was: Verdict, is: Verdict| (was, is, diff.count(was, is));
    let all = Verdict::ALL.into_iter().flat_map(|was| Verdict::ALL.map(|is| (was, is)));
    // The two that everybody looks for are always told.
    let mut counts = vec![change(Verdict::Allow, Verdict::Deny), change(Verdict::Deny, Verdict::Allow)];
    counts.extend(
        all.map(|(was, is)| change(was, is)).filter(|one| one.2 > 0 && !counts.contains(one)).collect::<Vec<_>>(),
    );
    let counts: Vec<String> =
        counts.iter().map(|(was, is, count)| format!("{count} {} → {}", was.name(), is.name())).collect();
    let asked = format!("{} endpoints, {} ports", matrix.endpoints.len(), matrix.tables.len());
    if diff.changes.is_empty() {
        return format!("No verdict changes ({} compared: {asked}).", diff.compared);
    }
    let expected = diff.changes.len() - diff.unexpected();
    let listed = if expected == 0 { String::new() } else { format!("; {expected} are expected") };
    format!("{} of {} verdicts change: {}{listed} ({asked}).", diff.changes.len(), diff.compared, counts.join(", "))
}

/// The whole comment.
pub fn write(parts: &Parts<'_>) -> String {
    let mut out = String::from("### Who reaches whom: what changes\n\n");
    let _ = writeln!(out, "{}", headline(parts));
    let mut rows = 0;
    for expected in [false, true] {
        let groups = || parts.diff.groups.iter().filter(move |group| group.expected == expected);
        let blocks: usize = groups().map(|group| group.blocks.len()).sum();
        if blocks == 0 {
            continue;
        }
        if expected {
            let _ = writeln!(out, "\n<details><summary>Expected changes</summary>");
        }
        out.push_str("\n| change | from | to | on | was | is |\n|---|---|---|---|---|---|\n");
        let mut left = 0;
        for group in groups() {
            for block in &group.blocks {
                rows += 1;
                if rows > MOST_ROWS {
                    left += 1;
                    continue;
                }
                let names = |which: &[usize]| code_list(&words(&parts.matrix.endpoints, which));
                let ports: Vec<String> = (block.ports.iter())
                    .filter_map(|port| parts.matrix.tables.get(*port))
                    .map(|table| table.port.to_string())
                    .collect();
                let change = format!("{} → **{}**", group.was.name(), group.is.name());
                let _ = writeln!(
                    out,
                    "| {change} | {} | {} | {} | {} | {} |",
                    names(&block.from),
                    names(&block.to),
                    code_list(&ports),
                    lines(parts.before, &group.before),
                    lines(parts.after, &group.after),
                );
            }
        }
        if left != 0 {
            let _ = writeln!(out, "\n{left} more rows are left out here.");
        }
        if expected {
            out.push_str("\n</details>\n");
        }
    }
    for (title, names) in [("Only before", parts.gone), ("New", parts.new)] {
        if !names.is_empty() {
            let _ = writeln!(out, "\n{title} ({}): {}", names.len(), code_list(names));
        }
    }
    if !parts.unused.is_empty() {
        let _ = writeln!(out, "\nExpected, but not so: {}", code_list(parts.unused));
    }
    out
}

fn code_list(names: &[String]) -> String {
    let codes: Vec<String> = names.iter().take(MOST_NAMES).map(|name| code(name)).collect();
    let more = names.len() - codes.len();
    if more == 0 { codes.join(", ") } else { few(&codes, MOST_NAMES) + &format!(" and {more} more") }
}

fn lines(book: &Book<'_>, lines: &[Line]) -> String {
    let texts: Vec<String> = lines.iter().map(|line| text(&book.text(line))).collect();
    texts.join("<br>")
}

/// As code: nothing inside is markup.
fn code(name: &str) -> String {
    let clean: String = name.chars().map(|c| if c == '`' || c.is_control() { '?' } else { c }).collect();
    format!("`{}`", clean.replace('|', "\\|"))
}

/// As text: letters that mean something are written by their number.
fn text(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '|' | '<' | '>' | '&' | '`' | '*' | '_' | '[' | ']' | '\\' | '~' | '@' | '#' => {
                let _ = write!(out, "&#{};", u32::from(c));
            }
            c if c.is_control() => out.push('?'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_their_cell() {
        assert_eq!(code("a`|b"), "`a?\\|b`");
        assert_eq!(text("<img src=x> | @all [x](y)\n"), "&#60;img src=x&#62; &#124; &#64;all &#91;x&#93;(y)?");
    }
}

//! A matrix as one page that needs nothing else: the data beside the code that draws it.
//!
//! Invariant: what people named is only ever data. It is inside one JSON text without `<`, and the page's code puts it on
//! the screen as text; the page's own policy forbids it to load anything.
//!
//! Shape of the data: `endpoints` `[namespace, name, set of ingress, set of egress]`; `sets` of `policies` that isolate;
//! `lines` `[text, whether the set of the endpoint belongs to it]`; `reasons` `[verdict (1 allow, 0 deny, 2 redirect, 3
//! audit), how it ended unless a policy explains it, egress line or null, ingress line or null]`; `tables` with one
//! string for each sender: runs `REASON` or `REASON*COUNT` in base 36, separated by blanks, `.` for what was not asked.

use std::collections::BTreeMap;

use agent_core::Direction;
use serde::Serialize;

use super::{Book, Line, ended_text, policy_text};
use crate::cluster::matrix::{Matrix, NO_REASON, Table};
use crate::cluster::{Party, Said, Spoke, Verdict};

const PAGE: &str = include_str!("page.html");
/// Where the data goes.
const PLACE: &str = "@DATA@";

/// What the page is told.
#[derive(Debug, Serialize)]
struct Data<'a> {
    endpoints: Vec<(&'a str, String, usize, usize)>,
    sets: Vec<Vec<usize>>,
    policies: Vec<String>,
    lines: Vec<(String, u8)>,
    reasons: Vec<(u8, String, Option<usize>, Option<usize>)>,
    tables: Vec<TableData>,
}

#[derive(Debug, Serialize)]
struct TableData {
    port: String,
    allowed: usize,
    asked: usize,
    rows: Vec<String>,
}

/// The page of a matrix with reasons.
///
/// # Errors
/// Never, in practice: everything in it can be JSON.
pub fn write(matrix: &Matrix, book: &Book<'_>) -> Result<String, serde_json::Error> {
    // The only letter that could end the element that holds it. In JSON it occurs in strings only.
    let data = serde_json::to_string(&data(matrix, book))?.replace('<', "\\u003c");
    let (head, tail) = PAGE.split_once(PLACE).unwrap_or((PAGE, ""));
    Ok([head, &data, tail].concat())
}

fn data<'a>(matrix: &'a Matrix, book: &Book<'_>) -> Data<'a> {
    let set = |party: usize, direction| book.isolating(party, direction).unwrap_or_default();
    let endpoints = matrix.endpoints.iter().enumerate().map(|(index, party)| {
        let namespace = match party {
            Party::Pod(name) => name.namespace.as_str(),
            Party::Node(_) => "node",
            Party::Address(_) | Party::World => "",
        };
        (namespace, party.to_string(), set(index, Direction::Ingress), set(index, Direction::Egress))
    });
    let mut policies: Vec<String> = Vec::new();
    let mut known: BTreeMap<String, usize> = BTreeMap::new();
    let sets = book.sets().iter().map(|set| {
        set.iter()
            .map(|policy| {
                let text = policy_text(policy);
                *known.entry(text.clone()).or_insert_with(|| {
                    policies.push(text);
                    policies.len() - 1
                })
            })
            .collect()
    });
    let (endpoints, sets) = (endpoints.collect(), sets.collect());
    let mut lines = Lines::default();
    let reasons = matrix.reasons.iter().map(|why| {
        let egress = why.egress.map(|said| lines.number(book, Direction::Egress, said));
        let ingress = why.ingress.map(|said| lines.number(book, Direction::Ingress, said));
        let unexplained = !why.allowed() && why.decided_at().is_none();
        let ended = if unexplained { ended_text(why.ended).to_string() } else { String::new() };
        let verdict = match why.verdict() {
            Verdict::Deny => 0,
            Verdict::Allow => 1,
            Verdict::Redirect => 2,
            Verdict::Audit => 3,
        };
        (verdict, ended, egress, ingress)
    });
    let reasons = reasons.collect();
    let tables = matrix.tables.iter().map(|table| {
        let (allowed, asked) = table.totals();
        TableData { port: table.port.to_string(), allowed, asked, rows: rows(table) }
    });
    Data { endpoints, sets, policies, lines: lines.texts, reasons, tables: tables.collect() }
}

/// Lines, each once.
#[derive(Debug, Default)]
struct Lines {
    texts: Vec<(String, u8)>,
    known: BTreeMap<(Direction, Said), usize>,
}

impl Lines {
    fn number(&mut self, book: &Book<'_>, direction: Direction, said: Said) -> usize {
        let texts = &mut self.texts;
        *self.known.entry((direction, said)).or_insert_with(|| {
            let default = said.rule == 0 && said.spoke != Spoke::Allow && said.node.is_none();
            let text = if default {
                let verb = if said.spoke == Spoke::Audit { "allowed, but only audited: denied" } else { "denied" };
                format!("{direction} {verb} by default")
            } else {
                book.text(&Line::Said(direction, said, book.set_of(said, direction, usize::MAX)))
            };
            texts.push((text, u8::from(default)));
            texts.len() - 1
        })
    }
}

fn rows(table: &Table) -> Vec<String> {
    table.whys.iter().map(|row| runs(row)).collect()
}

/// Runs of equal numbers.
fn runs(row: &[u32]) -> String {
    let mut out = String::new();
    for run in row.chunk_by(PartialEq::eq) {
        if !out.is_empty() {
            out.push(' ');
        }
        match run.first() {
            Some(&NO_REASON) | None => out.push('.'),
            Some(reason) => base36(u64::from(*reason), &mut out),
        }
        if run.len() > 1 {
            out.push('*');
            base36(u64::try_from(run.len()).unwrap_or(u64::MAX), &mut out);
        }
    }
    out
}

fn base36(mut number: u64, out: &mut String) {
    let mut digits = Vec::new();
    loop {
        let digit = u32::try_from(number % 36).unwrap_or_default();
        digits.extend(char::from_digit(digit, 36));
        number /= 36;
        if number == 0 {
            break;
        }
    }
    out.extend(digits.iter().rev());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_runs_in_base_36() {
        assert_eq!(runs(&[0, 0, 0, 35, 36, NO_REASON, 1295, 1295]), "0*3 z 10 . zz*2");
        assert_eq!(runs(&[7; 1000]), "7*rs");
        assert_eq!(runs(&[]), "");
    }

    #[test]
    fn the_page_has_one_place_for_its_data_and_loads_nothing() {
        assert_eq!(PAGE.matches(PLACE).count(), 1);
        for word in ["http:", "https:", "src=", "@import", "url(", "fetch(", "innerHTML", "document.write", "eval("] {
            assert!(!PAGE.contains(word), "{word}");
        }
    }
}

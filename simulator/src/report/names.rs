//! Many endpoints and ports in few words.

use std::collections::BTreeMap;

use crate::cluster::Party;

/// Pods of one workload in a row, from this many on, are written as one word.
const RUN: usize = 3;

/// Names, with numbered ones in a row as `shop/cart-{0..9}`.
pub fn words(parties: &[Party], which: &[usize]) -> Vec<String> {
    let names: Vec<String> = which.iter().filter_map(|index| parties.get(*index)).map(Party::to_string).collect();
    let mut runs: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    for name in &names {
        if let Some((base, number)) = numbered(name) {
            runs.entry(base).or_default().push(number);
        }
    }
    let mut ranges: BTreeMap<&str, Vec<(u64, u64)>> = BTreeMap::new();
    for (base, mut numbers) in runs {
        numbers.sort_unstable();
        let ranges = ranges.entry(base).or_default();
        for number in numbers {
            match ranges.last_mut() {
                Some((_, last)) if last.checked_add(1) == Some(number) => *last = number,
                _ => ranges.push((number, number)),
            }
        }
    }
    let mut words = Vec::new();
    for name in &names {
        let range = numbered(name).and_then(|(base, number)| {
            let ranges = ranges.get(base)?;
            let (first, last) = *ranges.iter().find(|(first, last)| (*first..=*last).contains(&number))?;
            let long = usize::try_from(last - first).is_ok_and(|more| more + 1 >= RUN);
            long.then_some((base, number, first, last))
        });
        match range {
            Some((base, number, first, last)) if number == first => words.push(format!("{base}-{{{first}..{last}}}")),
            Some(_) => {}
            None => words.push(name.clone()),
        }
    }
    words
}

/// A name's base and number, if it ends in `-` and a number that is written as numbers are.
fn numbered(name: &str) -> Option<(&str, u64)> {
    let (base, digits) = name.rsplit_once('-')?;
    let number: u64 = digits.parse().ok()?;
    (number.to_string() == digits).then_some((base, number))
}

/// The first words of a list, and how many more there are.
pub fn few(words: &[String], most: usize) -> String {
    match words.len().checked_sub(most) {
        None | Some(0) => words.join(", "),
        Some(more) => format!("{} and {more} more", words.get(..most).unwrap_or_default().join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use agent_core::model::Name;

    use super::*;

    #[test]
    fn pods_of_a_workload_are_one_word() {
        let names = ["api-0", "api-1", "api-10", "api-2", "api-07", "db-0", "db-1", "x-5", "x-6", "x-8"];
        let mut parties: Vec<Party> = names.iter().map(|name| Party::Pod(Name::new("a", name))).collect();
        parties.push(Party::World);
        let all: Vec<usize> = (0..parties.len()).collect();
        assert_eq!(
            words(&parties, &all),
            ["a/api-{0..2}", "a/api-10", "a/api-07", "a/db-0", "a/db-1", "a/x-5", "a/x-6", "a/x-8", "world"]
        );
        assert_eq!(words(&parties, &[1, 2]), ["a/api-1", "a/api-10"]);
    }

    #[test]
    fn few_says_how_many_are_left_out() {
        let words: Vec<String> = ["a", "b", "c"].map(str::to_owned).to_vec();
        assert_eq!((few(&words, 3), few(&words, 2)), ("a, b, c".to_owned(), "a, b and 1 more".to_owned()));
    }
}

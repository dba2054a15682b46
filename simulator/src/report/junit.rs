//! Reports in JUnit's form, as CI systems read them.

use std::fmt::Write as _;

/// One test case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// What it belongs to.
    pub class: String,
    /// Its name.
    pub name: String,
    /// Why it failed, if it did: one line, and more.
    pub failure: Option<(String, String)>,
}

/// A report of one suite.
pub fn write(suite: &str, cases: &[Case]) -> String {
    let failed = cases.iter().filter(|case| case.failure.is_some()).count();
    let mut out = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    let suite = escaped(suite);
    let _ = writeln!(out, "<testsuite name=\"{suite}\" tests=\"{}\" failures=\"{failed}\" errors=\"0\">", cases.len());
    for case in cases {
        let _ = write!(out, "  <testcase classname=\"{}\" name=\"{}\">", escaped(&case.class), escaped(&case.name));
        if let Some((message, more)) = &case.failure {
            let _ = write!(out, "<failure message=\"{}\">{}</failure>", escaped(message), escaped(more));
        }
        out.push_str("</testcase>\n");
    }
    out.push_str("</testsuite>\n");
    out
}

/// Text as XML and HTML hold it, in attributes too.
pub fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' => out.push_str("&#10;"),
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
    fn nothing_in_a_name_can_end_its_attribute() {
        let failure = Some(("a<b".to_owned(), "x\u{7}\n&".to_owned()));
        let text = write("s\"", &[Case { class: "c".to_owned(), name: "n'>".to_owned(), failure }]);
        assert!(text.contains("<testsuite name=\"s&quot;\" tests=\"1\" failures=\"1\" errors=\"0\">"), "{text}");
        assert!(text.contains("name=\"n&#39;&gt;\"><failure message=\"a&lt;b\">x?&#10;&amp;</failure>"), "{text}");
    }
}

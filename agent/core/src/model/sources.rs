//! Files and what was read from them: a file that is as it was is not read again.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::object::Object;
use super::read_objects;
use crate::input::{InputErrors, Report};

/// Files by name. Objects of one file are in the order in which they are written, files in the order of their names.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    files: BTreeMap<String, File>,
}

#[derive(Clone, Debug)]
struct File {
    text: Arc<str>,
    objects: Result<Vec<Arc<Object>>, InputErrors>,
}

impl Sources {
    /// Makes these the files (name, text); those that have changed are read. Returns all objects.
    ///
    /// # Errors
    /// Everything that is wrong with any of them. (An object that is in two files is found by
    /// [`Model::replace`](super::Model::replace).)
    pub fn read(&mut self, files: &[(String, Arc<str>)]) -> Result<Vec<Arc<Object>>, InputErrors> {
        let mut before = std::mem::take(&mut self.files);
        for (name, text) in files {
            let known = before.remove(name).filter(|file| Arc::ptr_eq(&file.text, text) || file.text == *text);
            let file = known.unwrap_or_else(|| {
                let objects = read_objects(&[(name.clone(), text.to_string())]);
                let objects = objects.map(|objects| objects.into_iter().map(Arc::new).collect());
                File { text: Arc::clone(text), objects }
            });
            self.files.insert(name.clone(), file);
        }
        let (mut report, mut all) = (Report::default(), Vec::new());
        for file in self.files.values() {
            match &file.objects {
                Ok(objects) => all.extend(objects.iter().cloned()),
                Err(errors) => report.extend(errors.0.iter().cloned()),
            }
        }
        report.finish(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(texts: &[(&str, &str)]) -> Vec<(String, Arc<str>)> {
        texts.iter().map(|(name, text)| ((*name).to_owned(), Arc::from(*text))).collect()
    }

    fn namespace(name: &str) -> String {
        format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n")
    }

    #[test]
    fn only_files_that_have_changed_are_read_again() {
        let mut sources = Sources::default();
        let (a, b, c) = (namespace("a"), namespace("b"), namespace("c"));
        let before = sources.read(&files(&[("1.yaml", &a), ("2.yaml", &b)])).unwrap();
        let after = sources.read(&files(&[("1.yaml", &a), ("2.yaml", &c)])).unwrap();
        assert!(Arc::ptr_eq(&before[0], &after[0]));
        assert_eq!(after[1].meta().name, "c");
        assert_eq!(sources.read(&files(&[("2.yaml", &c)])).unwrap().len(), 1);
    }

    #[test]
    fn everything_that_is_wrong_is_said_until_it_is_right() {
        let mut sources = Sources::default();
        let good = namespace("a");
        for _ in 0..2 {
            let error = sources.read(&files(&[("1.yaml", "kind: 1"), ("2.yaml", &good), ("3.yaml", "{")])).unwrap_err();
            let text = error.to_string();
            assert!(text.contains("1.yaml:") && text.contains("3.yaml:") && !text.contains("2.yaml"), "{text}");
        }
        assert_eq!(sources.read(&files(&[("2.yaml", &good)])).unwrap().len(), 1);
    }
}

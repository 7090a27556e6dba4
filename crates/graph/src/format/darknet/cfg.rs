//! The text of a Darknet `.cfg`: sections of `key=value` lines, each remembering where it stood.

use std::{borrow::Cow, path::Path, str::FromStr};

use crate::{Error, Result};

/// One `[name]` with its options.
pub(super) struct Section<'a> {
    pub name: String,
    pub line: usize,
    options: Vec<(String, String, usize)>,
    pub path: &'a Path,
}

/// Splits `text` into its sections; `path` is only named in errors.
pub(super) fn parse<'a>(text: &str, path: &'a Path) -> Result<Vec<Section<'a>>> {
    let mut sections: Vec<Section> = vec![];
    for (number, raw) in (1..).zip(text.trim_start_matches('\u{feff}').lines()) {
        // Darknet ignores all white space, and reads lines that begin with # or ; as comments.
        let line: String = raw.chars().filter(|c| !c.is_whitespace()).collect();
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        let at = |what: String| Error::format(path, what).at(format!("line {number}"));
        if let Some(rest) = line.strip_prefix('[') {
            let name = rest.split(']').next().unwrap_or_default().to_owned();
            sections.push(Section { name, line: number, options: vec![], path });
            continue;
        }
        let Some((key, value)) = line.split_once('=') else {
            return Err(at(format!("`{}` is neither `[section]` nor `key=value`", short(&line))));
        };
        let Some(section) = sections.last_mut() else {
            return Err(at(format!("`{}` stands before any section", short(key))).hint("a .cfg begins with `[net]`"));
        };
        let value = value.split('#').next().unwrap_or_default();
        section.options.push((key.to_owned(), value.to_owned(), number));
    }
    Ok(sections)
}

impl Section<'_> {
    /// An error at the section's first line.
    pub fn error(&self, what: impl Into<String>) -> Error {
        self.error_on(self.line, what)
    }

    /// An error at the line of `key`, or of the section where the key is absent.
    pub fn error_at(&self, key: &str, what: impl Into<String>) -> Error {
        self.error_on(self.find(key).map_or(self.line, |(_, line)| line), what)
    }

    /// An error at a line of this section.
    pub fn error_on(&self, line: usize, what: impl Into<String>) -> Error {
        Error::format(self.path, what).at(format!("line {line}, [{}]", short(&self.name)))
    }

    /// Every key with its line, in the order of the file.
    pub fn keys(&self) -> impl Iterator<Item = (&str, usize)> {
        self.options.iter().map(|(key, _, line)| (key.as_str(), *line))
    }

    fn find(&self, key: &str) -> Option<(&str, usize)> {
        self.options.iter().find(|(k, ..)| k == key).map(|(_, value, line)| (value.as_str(), *line))
    }

    /// The text of an option.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.find(key).map(|(value, _)| value)
    }

    /// A number, `default` where it is absent.
    pub fn number<T: FromStr>(&self, key: &str, default: T) -> Result<T> {
        match self.text(key) {
            None => Ok(default),
            Some(text) => {
                text.parse().map_err(|_| self.error_at(key, format!("`{key}={}` is no such number", short(text))))
            }
        }
    }

    /// A whole number of at least 1 and at most 65536, more than any layer's extent.
    pub fn extent(&self, key: &str, default: usize) -> Result<usize> {
        match self.number(key, default)? {
            n @ 1..=65_536 => Ok(n),
            n => Err(self.error_at(key, format!("`{key}` is {n}, it must lie in 1..=65536"))),
        }
    }

    /// Numbers separated by commas; empty where the key is absent.
    pub fn list<T: FromStr>(&self, key: &str) -> Result<Vec<T>> {
        let text = self.text(key).unwrap_or_default();
        let parts = text.split(',').filter(|part| !part.is_empty());
        parts
            .map(|p| p.parse().map_err(|_| self.error_at(key, format!("`{}` in `{key}` is no such number", short(p)))))
            .collect()
    }

    /// Refuses options that would change the result and that no graph expresses, where they are not `neutral`.
    pub fn refuse(&self, keys: &[(&str, &str)]) -> Result<()> {
        for (key, neutral) in keys {
            if let Some(value) = self.text(key).filter(|value| value != neutral) {
                return Err(self
                    .error_at(key, format!("`{key}={}` is not supported", short(value)))
                    .hint(format!("only `{key}={neutral}` is, or leaving it out")));
            }
        }
        Ok(())
    }
}

/// The beginning of what a message quotes: lines of hostile files are as long as the file.
pub(super) fn short(text: &str) -> Cow<'_, str> {
    const LONGEST: usize = 60;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]).into(),
        None => text.into(),
    }
}

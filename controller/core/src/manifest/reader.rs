//! Reads fields out of a document, and gathers everything that is wrong with them.

use std::collections::BTreeSet;
use std::str::FromStr;

use super::node::Value;
use super::{Fault, Node, QUOTED_CHARS_MAX, TEXT_BYTES_MAX, Texts, quoted};

/// One map of a document. Fields that nobody asks for do not exist.
pub(super) struct Reader<'a> {
    path: String,
    line: Option<usize>,
    fields: &'a [(String, Node)],
    asked: BTreeSet<&'static str>,
    pub(super) faults: Vec<Fault>,
}

/// An item of a list.
pub(super) enum Item<'r, 'a> {
    /// One value.
    Word(&'a str),
    /// Fields; what is wrong with them is gathered as it is read.
    Fields(&'r mut Reader<'a>),
}

impl<'a> Reader<'a> {
    pub(super) fn new(root: &'a Node) -> Self {
        Self::of(String::new(), root)
    }

    fn of(path: String, node: &'a Node) -> Self {
        let mut reader =
            Self { path, line: node.line, fields: &[], asked: BTreeSet::new(), faults: Vec::new() };
        if let Value::Map(fields) = &node.value {
            reader.fields = fields;
        } else {
            let message = format!("must be fields with values, is {}", describe(&node.value));
            let (path, line) = (reader.path.clone(), node.line);
            reader.faults.push(Fault { path, line, message });
        }
        reader
    }

    /// The field, if it is there and not null.
    pub(super) fn node(&mut self, key: &'static str) -> Option<&'a Node> {
        self.asked.insert(key);
        let node = self.fields.iter().find(|(name, _)| name == key).map(|(_, node)| node)?;
        (!matches!(node.value, Value::Null)).then_some(node)
    }

    pub(super) fn fault(&mut self, key: &str, message: String) {
        let line = self.fields.iter().find(|(name, _)| name == key).map(|(_, node)| node.line);
        let line = line.unwrap_or(self.line);
        self.fault_at(key, line, message);
    }

    fn fault_at(&mut self, key: &str, line: Option<usize>, message: String) {
        let dot = if self.path.is_empty() { "" } else { "." };
        let path = format!("{}{dot}{key:.QUOTED_CHARS_MAX$}", self.path);
        self.faults.push(Fault { path, line, message });
    }

    /// Complains about fields that nobody asked for.
    pub(super) fn finish(&mut self, what: &str) {
        for (key, node) in self.fields {
            if self.asked.contains(key.as_str()) {
                continue;
            }
            let near = self
                .asked
                .iter()
                .filter(|known| distance(known, key) <= 2)
                .min_by_key(|k| distance(k, key));
            let hint = match near {
                Some(near) => format!("did you mean `{near}`?"),
                None => {
                    let known: Vec<&str> = self.asked.iter().copied().collect();
                    format!("{what} has {}", known.join(", "))
                }
            };
            self.fault_at(key, node.line, format!("there is no such field; {hint}"));
        }
    }

    /// The fields of a field.
    pub(super) fn inner<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&mut Reader<'a>) -> T,
    ) -> Option<T> {
        let node = self.node(key)?;
        let mut inner = Reader::of(key.to_owned(), node);
        let value = read(&mut inner);
        inner.finish(key);
        self.faults.extend(inner.faults);
        Some(value)
    }

    /// A list whose items have fields, or are one value each.
    pub(super) fn entries<T>(
        &mut self,
        key: &'static str,
        items_max: usize,
        short: impl Fn(&str) -> Result<T, String>,
        read: impl Fn(&mut Reader<'a>) -> Option<T>,
    ) -> Vec<T> {
        let mut items = Vec::new();
        for (index, node) in self.nodes(key, items_max).iter().enumerate() {
            let place = format!("{key}[{index}]");
            if let Value::Scalar { .. } = node.value {
                match scalar(&node.value).and_then(&short) {
                    Ok(item) => items.push(item),
                    Err(message) => self.fault_at(&place, node.line, message),
                }
                continue;
            }
            let mut inner = Reader::of(place, node);
            items.extend(read(&mut inner));
            inner.finish(key);
            self.faults.extend(inner.faults);
        }
        items
    }

    /// A scalar, as it was written.
    pub(super) fn scalar(&mut self, key: &'static str) -> Option<String> {
        let node = self.node(key)?;
        match scalar(&node.value) {
            Ok(text) => Some(text.to_owned()),
            Err(message) => {
                self.fault(key, message);
                None
            }
        }
    }

    /// A text: a number or a boolean is none.
    pub(super) fn text(&mut self, key: &'static str) -> Option<String> {
        if let Some(Node { value: Value::Scalar { text, plain: true }, .. }) = self.node(key)
            && (text.parse::<f64>().is_ok() || matches!(text.as_str(), "true" | "false"))
        {
            self.fault(key, format!("must be text, is {text:.QUOTED_CHARS_MAX$}"));
            return None;
        }
        self.scalar(key)
    }

    /// Something that is read from text.
    pub(super) fn parsed<T: FromStr<Err: ToString>>(&mut self, key: &'static str) -> Option<T> {
        self.quantity(key, |text| text.parse().map_err(|e: T::Err| e.to_string()))
    }

    pub(super) fn quantity<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let text = self.scalar(key)?;
        match read(&text) {
            Ok(value) => Some(value),
            Err(message) => {
                self.fault(key, message);
                None
            }
        }
    }

    pub(super) fn number(&mut self, key: &'static str, min: u32, max: u32) -> Option<u32> {
        self.quantity(key, |text| {
            let number: i128 = text.parse().map_err(|_| {
                format!("must be a whole number from {min} to {max}, is {}", quoted(text))
            })?;
            match u32::try_from(number) {
                Ok(number) if (min..=max).contains(&number) => Ok(number),
                _ => Err(format!("must be {min} to {max}, is {number}")),
            }
        })
    }

    pub(super) fn boolean(&mut self, key: &'static str) -> Option<bool> {
        self.one_of(key, &[("true", true), ("false", false)])
    }

    pub(super) fn one_of<T: Copy>(&mut self, key: &'static str, known: &[(&str, T)]) -> Option<T> {
        self.quantity(key, |text| {
            let found = known.iter().find(|(name, _)| *name == text).map(|(_, value)| *value);
            found.ok_or_else(|| {
                let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
                format!("must be {}, is {}", names.join(" or "), quoted(text))
            })
        })
    }

    /// A list of scalars.
    pub(super) fn list(&mut self, key: &'static str, items_max: usize) -> Vec<String> {
        self.items(key, items_max, |text| Ok(text.to_owned()))
    }

    /// A list of what is read from text.
    pub(super) fn items<T>(
        &mut self,
        key: &'static str,
        items_max: usize,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> Vec<T> {
        let mut all = Vec::new();
        for (index, item) in self.nodes(key, items_max).iter().enumerate() {
            match scalar(&item.value).and_then(&read) {
                Ok(value) => all.push(value),
                Err(message) => self.fault_at(&format!("{key}[{index}]"), item.line, message),
            }
        }
        all
    }

    /// A list whose items are values or fields. Where `read` gives an error, it is of the item.
    pub(super) fn each(
        &mut self,
        key: &'static str,
        items_max: usize,
        mut read: impl FnMut(Item<'_, 'a>) -> Result<(), String>,
    ) {
        for (index, item) in self.nodes(key, items_max).iter().enumerate() {
            let path = format!("{key}[{index}]");
            let done = if matches!(item.value, Value::Map(_)) {
                let mut inner = Reader::of(path.clone(), item);
                let done = read(Item::Fields(&mut inner));
                inner.finish(key);
                self.faults.extend(inner.faults);
                done
            } else {
                scalar(&item.value).and_then(|word| read(Item::Word(word)))
            };
            if let Err(message) = done {
                self.fault_at(&path, item.line, message);
            }
        }
    }

    /// The items of a list.
    fn nodes(&mut self, key: &'static str, items_max: usize) -> &'a [Node] {
        let Some(node) = self.node(key) else {
            return &[];
        };
        let Value::List(items) = &node.value else {
            self.fault(key, format!("must be a list, is {}", describe(&node.value)));
            return &[];
        };
        if items.len() > items_max {
            self.fault(key, format!("has {} items, at most {items_max}", items.len()));
        }
        items
    }

    /// A map of scalars.
    pub(super) fn map(
        &mut self,
        key: &'static str,
        items_max: usize,
        check: impl Fn(&str, &str) -> Result<(), String>,
    ) -> Texts {
        let Some(node) = self.node(key) else {
            return Texts::new();
        };
        let Value::Map(fields) = &node.value else {
            self.fault(key, format!("must be names with values, is {}", describe(&node.value)));
            return Texts::new();
        };
        if fields.len() > items_max {
            self.fault(key, format!("has {} items, at most {items_max}", fields.len()));
        }
        let mut texts = Texts::new();
        for (name, node) in fields {
            let empty = matches!(node.value, Value::Null);
            let text = if empty { Ok("") } else { scalar(&node.value) };
            let checked = text.and_then(|text| {
                scalar(&Value::Scalar { text: name.clone(), plain: false })?;
                check(name, text).map(|()| text)
            });
            match checked {
                Ok(text) => drop(texts.insert(name.clone(), text.to_owned())),
                Err(message) => self.fault_at(&format!("{key}.{name:.60}"), node.line, message),
            }
        }
        texts
    }
}

fn scalar(value: &Value) -> Result<&str, String> {
    match value {
        Value::Scalar { text, .. } if text.contains('\0') => Err("has a NUL byte".to_owned()),
        Value::Scalar { text, .. } if text.len() > TEXT_BYTES_MAX => {
            Err(format!("has {} bytes, at most {TEXT_BYTES_MAX}", text.len()))
        }
        Value::Scalar { text, .. } => Ok(text),
        Value::Null | Value::List(_) | Value::Map(_) | Value::Other(_) => {
            Err(format!("must be one value, is {}", describe(value)))
        }
    }
}

fn describe(value: &Value) -> String {
    match value {
        Value::Null => "empty".to_owned(),
        Value::Scalar { text, .. } => quoted(text),
        Value::List(_) => "a list".to_owned(),
        Value::Map(_) => "fields with values".to_owned(),
        Value::Other(what) => (*what).to_owned(),
    }
}

/// Letters to be changed, added or left out to make one word of the other (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (index, x) in a.chars().enumerate() {
        let mut next = vec![index.saturating_add(1)];
        for ((y, (above, diagonal)), _) in b.chars().zip(row.iter().skip(1).zip(&row)).zip(0..64) {
            let left = next.last().copied().unwrap_or(0).saturating_add(1);
            let changed = diagonal.saturating_add(usize::from(x != y));
            next.push(left.min(above.saturating_add(1)).min(changed));
        }
        row = next;
    }
    row.last().copied().unwrap_or(0)
}

//! A document as a tree whose parts know their lines; from YAML, JSON or CBOR.

#![expect(clippy::wildcard_enum_match_arm, reason = "events and values of other crates")]

use std::collections::BTreeMap;

use saphyr_parser::{Event, Parser, ScalarStyle};

use super::{BYTES_MAX, Fault, Format, quoted};

/// Parts of a document at most, aliases counted as often as they are used: no billion laughs.
const NODES_MAX: usize = 10_000;
const DEPTH_MAX: usize = 32;

/// A part of a document.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) line: Option<usize>,
    pub(super) value: Value,
}

#[derive(Debug, Clone)]
pub(super) enum Value {
    Null,
    /// `plain` where it was written without quotes, or is no text: it may be a number.
    Scalar {
        text: String,
        plain: bool,
    },
    List(Vec<Node>),
    Map(Vec<(String, Node)>),
    /// Something that manifests have no use for; the text says what.
    Other(&'static str),
}

fn fault(line: Option<usize>, message: String) -> Fault {
    Fault { path: String::new(), line, message }
}

/// Reads a document.
pub(super) fn load(bytes: &[u8], format: Format) -> Result<Node, Fault> {
    if bytes.len() > BYTES_MAX {
        let bytes = bytes.len();
        return Err(fault(None, format!("{bytes} bytes: a manifest has at most {BYTES_MAX}")));
    }
    let first = bytes.iter().find(|byte| !byte.is_ascii_whitespace());
    match (format, first) {
        (Format::Json, _) | (Format::Detect, Some(b'{')) => json(bytes),
        (Format::Cbor, _) | (Format::Detect, Some(0xa0..=0xbf | 0xd9)) => cbor(bytes),
        (Format::Yaml | Format::Detect, _) => match std::str::from_utf8(bytes) {
            Ok(text) => yaml(text),
            Err(_) => Err(fault(None, "it is no text in UTF-8, and no CBOR map".to_owned())),
        },
    }
}

fn json(bytes: &[u8]) -> Result<Node, Fault> {
    let value: serde_json::Value = serde_json::from_slice(bytes)
        .map_err(|e| fault(Some(e.line()), format!("it is not JSON: {e}")))?;
    Ok(from_json(value))
}

fn from_json(value: serde_json::Value) -> Node {
    use serde_json::Value as Json;
    let value = match value {
        Json::Null => Value::Null,
        Json::Bool(_) | Json::Number(_) => Value::Scalar { text: value.to_string(), plain: true },
        Json::String(text) => Value::Scalar { text, plain: false },
        Json::Array(items) => Value::List(items.into_iter().map(from_json).collect()),
        Json::Object(fields) => {
            Value::Map(fields.into_iter().map(|(key, value)| (key, from_json(value))).collect())
        }
    };
    Node { line: None, value }
}

fn cbor(bytes: &[u8]) -> Result<Node, Fault> {
    let value = limpet_protocol::cbor::decode(bytes, BYTES_MAX);
    from_cbor(value.map_err(|e| fault(None, format!("it is not CBOR: {e}")))?)
}

fn from_cbor(value: serde_cbor::Value) -> Result<Node, Fault> {
    use serde_cbor::Value as Cbor;
    let plain = |text: String| Value::Scalar { text, plain: true };
    let value = match value {
        Cbor::Null => Value::Null,
        Cbor::Bool(value) => plain(value.to_string()),
        Cbor::Integer(value) => plain(value.to_string()),
        Cbor::Float(value) => plain(value.to_string()),
        Cbor::Text(text) => Value::Scalar { text, plain: false },
        Cbor::Array(items) => {
            Value::List(items.into_iter().map(from_cbor).collect::<Result<_, _>>()?)
        }
        Cbor::Map(fields) => {
            let field = |(key, value)| match key {
                Cbor::Text(key) => Ok((key, from_cbor(value)?)),
                _ => Err(fault(None, "a CBOR map has a key that is no text".to_owned())),
            };
            Value::Map(fields.into_iter().map(field).collect::<Result<_, _>>()?)
        }
        _ => Value::Other("bytes, or a tagged value"),
    };
    Ok(Node { line: None, value })
}

fn yaml(text: &str) -> Result<Node, Fault> {
    let parser = Parser::new_from_str(text);
    let mut loader = Loader { parser, anchors: BTreeMap::new(), nodes: 0, repeated_bytes: 0 };
    let mut root = None;
    loop {
        let (event, line) = loader.next()?;
        match event {
            Event::StreamEnd => break,
            Event::Nothing | Event::StreamStart | Event::DocumentStart(_) | Event::DocumentEnd => {}
            _ if root.is_some() => {
                let message = "a second document begins: publish each on its own".to_owned();
                return Err(fault(Some(line), message));
            }
            event => root = Some(loader.node(event, line, 0)?),
        }
    }
    root.ok_or_else(|| fault(None, "it is empty".to_owned()))
}

struct Loader<'a> {
    parser: Parser<'a, saphyr_parser::StrInput<'a>>,
    anchors: BTreeMap<usize, Node>,
    nodes: usize,
    /// Bytes of text that aliases have repeated.
    repeated_bytes: usize,
}

impl<'a> Loader<'a> {
    fn next(&mut self) -> Result<(Event<'a>, usize), Fault> {
        match self.parser.next() {
            Some(Ok((event, span))) => Ok((event, span.start.line())),
            Some(Err(e)) => {
                Err(fault(Some(e.marker().line()), format!("it is not YAML: {}", e.info())))
            }
            None => Ok((Event::StreamEnd, 0)),
        }
    }

    fn node(&mut self, event: Event<'a>, line: usize, depth: usize) -> Result<Node, Fault> {
        self.count(1, line)?;
        if depth > DEPTH_MAX {
            return Err(fault(Some(line), format!("it is nested deeper than {DEPTH_MAX}")));
        }
        let (anchor, value) = match event {
            Event::Scalar(text, style, anchor, _) => (anchor, scalar(&text, style)),
            Event::SequenceStart(anchor, _) => (anchor, self.list(depth)?),
            Event::MappingStart(anchor, _) => (anchor, self.map(depth)?),
            Event::Alias(anchor) => {
                let known = self.anchors.get(&anchor).cloned();
                let node = known.ok_or_else(|| fault(Some(line), "an unknown alias".to_owned()))?;
                self.repeat(&node, line)?;
                return Ok(node);
            }
            _ => (0, Value::Other("something that is no value")),
        };
        let node = Node { line: Some(line), value };
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn list(&mut self, depth: usize) -> Result<Value, Fault> {
        let mut items = Vec::new();
        loop {
            match self.next()? {
                (Event::SequenceEnd | Event::StreamEnd, _) => return Ok(Value::List(items)),
                (event, line) => items.push(self.node(event, line, depth.saturating_add(1))?),
            }
        }
    }

    fn map(&mut self, depth: usize) -> Result<Value, Fault> {
        let mut fields: Vec<(String, Node)> = Vec::new();
        let deeper = depth.saturating_add(1);
        loop {
            let (event, line) = match self.next()? {
                (Event::MappingEnd | Event::StreamEnd, _) => return Ok(Value::Map(fields)),
                next => next,
            };
            let Value::Scalar { text: key, .. } = self.node(event, line, deeper)?.value else {
                return Err(fault(Some(line), "a key must be a word".to_owned()));
            };
            if fields.iter().any(|(known, _)| *known == key) {
                return Err(fault(Some(line), format!("the key {} is there twice", quoted(&key))));
            }
            let (event, line) = self.next()?;
            fields.push((key, self.node(event, line, deeper)?));
        }
    }

    fn repeat(&mut self, node: &Node, line: usize) -> Result<(), Fault> {
        let (nodes, bytes) = size(node);
        self.count(nodes, line)?;
        self.repeated_bytes = self.repeated_bytes.saturating_add(bytes);
        match self.repeated_bytes > BYTES_MAX {
            true => Err(fault(Some(line), format!("its aliases repeat over {BYTES_MAX} bytes"))),
            false => Ok(()),
        }
    }

    fn count(&mut self, nodes: usize, line: usize) -> Result<(), Fault> {
        self.nodes = self.nodes.saturating_add(nodes);
        match self.nodes > NODES_MAX {
            true => Err(fault(Some(line), format!("it has more than {NODES_MAX} values"))),
            false => Ok(()),
        }
    }
}

fn scalar(text: &str, style: ScalarStyle) -> Value {
    let plain = style == ScalarStyle::Plain;
    match text {
        "" | "~" | "null" if plain => Value::Null,
        text => Value::Scalar { text: text.to_owned(), plain },
    }
}

/// Values, and bytes of text.
fn size(node: &Node) -> (usize, usize) {
    let sum = |(nodes, bytes): (usize, usize), (more, text): (usize, usize)| {
        (nodes.saturating_add(more), bytes.saturating_add(text))
    };
    match &node.value {
        Value::List(items) => items.iter().map(size).fold((1, 0), sum),
        Value::Map(fields) => {
            fields.iter().map(|(key, value)| sum((0, key.len()), size(value))).fold((1, 0), sum)
        }
        Value::Scalar { text, .. } => (1, text.len()),
        Value::Null | Value::Other(_) => (1, 0),
    }
}

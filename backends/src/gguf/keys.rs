//! The metadata of a file, with a record of what was read.
//!
//! So a synthesiser can end by naming a key that it does not know and that says something: a key
//! that is skipped silently is a model that answers almost right.

use super::header::{Array, Header, Kind, Value, display, scalar};
use std::cell::RefCell;
use std::collections::BTreeSet;

type Result<T> = std::result::Result<T, String>;

/// A file's metadata.
pub(super) struct Keys<'a> {
    header: &'a Header,
    file: &'a [u8],
    read: RefCell<BTreeSet<String>>,
}

impl<'a> Keys<'a> {
    pub(super) fn new(header: &'a Header, file: &'a [u8]) -> Self {
        Self { header, file, read: RefCell::default() }
    }

    fn get(&self, key: &str) -> Option<&'a Value> {
        self.read.borrow_mut().insert(key.to_owned());
        self.header.metadata.get(key)
    }

    /// Whether the file says anything of a key; it is not read by that.
    pub(super) fn has(&self, key: &str) -> bool {
        self.header.metadata.contains_key(key)
    }

    fn wrong(&self, key: &str, rule: &str, value: &Value) -> String {
        format!("`{key}` must be {rule}, not {}", display(value, self.file))
    }

    /// A whole number that fits 32 bits, so that products of two cannot overflow. A list counts if
    /// all of its elements are equal.
    pub(super) fn number(&self, key: &str) -> Result<Option<u32>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let rule = "a whole number below 2^32";
        let number = match value {
            Value::Array(array) => {
                let mut values = array.values(self.file);
                let first = values.next();
                if !values.all(|value| Some(&value) == first.as_ref()) {
                    return Err(format!("`{key}` differs between layers, which is not supported"));
                }
                first.as_ref().and_then(unsigned)
            }
            value => unsigned(value),
        };
        match number {
            Some(number) => Ok(Some(number)),
            None => Err(self.wrong(key, rule, value)),
        }
    }

    pub(super) fn required(&self, key: &str) -> Result<u32> {
        self.number(key)?.ok_or_else(|| format!("`{key}` is missing"))
    }

    /// A finite number. One of 32 bits becomes the shortest decimal that stands for it, which is
    /// the number that it was written from: 1e-6, not 0.000000999999997.
    pub(super) fn float(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let float = match value {
            Value::F32(x) => Some(shortest(*x)),
            Value::F64(x) => Some(*x),
            value => unsigned(value).map(f64::from),
        };
        match float.filter(|x| x.is_finite()) {
            Some(x) => Ok(Some(x)),
            None => Err(self.wrong(key, "a number", value)),
        }
    }

    /// A switch that may be left open.
    pub(super) fn switch(&self, key: &str) -> Result<Option<bool>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(is)) => Ok(Some(*is)),
            Some(value) => Err(self.wrong(key, "true or false", value)),
        }
    }

    pub(super) fn string(&self, key: &str) -> Result<Option<&'a str>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value {
            Value::String(range) => std::str::from_utf8(&self.file[range.clone()])
                .map(Some)
                .map_err(|_| format!("`{key}` is no UTF-8")),
            value => Err(self.wrong(key, "a text", value)),
        }
    }

    fn array(&self, key: &str, rule: &str) -> Result<Option<&'a Array>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(array)) => Ok(Some(array)),
            Some(value) => Err(self.wrong(key, rule, value)),
        }
    }

    /// A list of texts.
    pub(super) fn strings(&self, key: &str) -> Result<Option<Vec<&'a str>>> {
        let Some(array) = self.array(key, "a list of texts")? else { return Ok(None) };
        if array.kind != Kind::String {
            return Err(format!("`{key}` must be a list of texts, not of {:?}", array.kind));
        }
        let text = |(index, value)| match value {
            Value::String(range) => std::str::from_utf8(&self.file[range])
                .map_err(|_| format!("`{key}`: element {index} is no UTF-8")),
            _ => unreachable!("a list of texts has nothing else"),
        };
        array.values(self.file).enumerate().map(text).collect::<Result<_>>().map(Some)
    }

    /// A list of finite numbers.
    pub(super) fn floats(&self, key: &str) -> Result<Option<Vec<f64>>> {
        let Some(array) = self.array(key, "a list of numbers")? else { return Ok(None) };
        let number = |value: Value| match value {
            Value::F32(x) => Some(f64::from(x)),
            Value::F64(x) => Some(x),
            Value::Unsigned(n) => Some(n as f64),
            Value::Signed(n) => Some(n as f64),
            _ => None,
        };
        let numbers: Option<Vec<f64>> =
            array.values(self.file).map(|value| number(value).filter(|x| x.is_finite())).collect();
        numbers.map(Some).ok_or_else(|| format!("`{key}` must be a list of numbers"))
    }

    /// A list of switches.
    pub(super) fn switches(&self, key: &str) -> Result<Option<Vec<bool>>> {
        let Some(array) = self.array(key, "a list of switches")? else { return Ok(None) };
        let switch = |value: Value| match value {
            Value::Bool(is) => Some(is),
            value => unsigned(&value).map(|n| n != 0),
        };
        let switches: Option<Vec<bool>> = array.values(self.file).map(switch).collect();
        switches.map(Some).ok_or_else(|| format!("`{key}` must be a list of switches"))
    }

    /// Refuses a key that says anything else than one of `allowed`.
    pub(super) fn only(&self, key: &str, allowed: &[f64]) -> Result<()> {
        let value = match self.get(key) {
            None => return Ok(()),
            Some(Value::Bool(is)) => f64::from(u8::from(*is)),
            Some(_) => self.float(key)?.unwrap_or(f64::NAN),
        };
        match allowed.contains(&value) {
            true => Ok(()),
            false => Err(format!("`{key}` is {value}, which is not supported")),
        }
    }

    /// Refuses every key below `prefix` that was not read, is not `neutral`, and says something.
    pub(super) fn refuse_rest(&self, prefix: &str, neutral: &[&str]) -> Result<()> {
        let read = self.read.borrow();
        for (key, value) in self.header.metadata.range(prefix.to_owned()..) {
            let Some(rest) = key.strip_prefix(prefix) else { break };
            let says_nothing = matches!(value, Value::Bool(false) | Value::Unsigned(0));
            if !read.contains(key) && !neutral.contains(&rest) && !says_nothing {
                let value = display(value, self.file);
                return Err(format!("`{key}` is {value}, which is not supported"));
            }
        }
        Ok(())
    }

    /// The elements of a tensor of plain numbers in 32 bits; `None` if there is no such tensor.
    pub(super) fn tensor(&self, name: &str) -> Result<Option<Vec<f64>>> {
        let Some(tensor) = self.header.tensors.get(name) else { return Ok(None) };
        if tensor.kind != super::types::TensorType::F32 {
            let kind = tensor.kind.name();
            return Err(format!("tensor `{name}` is stored as {kind}, not as F32"));
        }
        let starts = tensor.range.clone().step_by(4);
        let numbers: Vec<f64> = starts
            .filter_map(|at| match scalar(Kind::F32, self.file, at..at + 4) {
                Value::F32(x) => Some(shortest(x)),
                _ => None,
            })
            .collect();
        match numbers.iter().all(|x| x.is_finite()) {
            true => Ok(Some(numbers)),
            false => Err(format!("tensor `{name}` holds what is no number")),
        }
    }

    /// The shape of a tensor, the outermost dimension first.
    pub(super) fn shape(&self, name: &str) -> Option<&'a [usize]> {
        self.header.tensors.get(name).map(|tensor| tensor.shape.as_slice())
    }
}

fn unsigned(value: &Value) -> Option<u32> {
    match value {
        Value::Unsigned(n) => u32::try_from(*n).ok(),
        Value::Signed(n) => u32::try_from(*n).ok(),
        _ => None,
    }
}

/// The number whose decimal is the shortest that stands for `x`.
fn shortest(x: f32) -> f64 {
    x.to_string().parse().unwrap_or(f64::NAN)
}

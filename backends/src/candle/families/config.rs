//! A configuration that remembers which of its keys were read.
//!
//! So `refuse_rest` can name the keys that nobody has looked at: see the parent module.

use super::{Result, invalid, parse_token_ids};
use crate::LoadError;
use serde_json::{Map, Value};
use std::cell::RefCell;
use std::collections::BTreeSet;

/// An object of a configuration that remembers which of its keys were read.
pub(crate) struct HfConfig {
    values: Map<String, Value>,
    /// Where this object stands in the file, for messages: empty, or `rope_scaling.`.
    path: String,
    read: RefCell<BTreeSet<String>>,
}

impl HfConfig {
    pub(super) fn parse(json: &[u8]) -> Result<Self> {
        match serde_json::from_slice(json) {
            Ok(Value::Object(values)) => Ok(Self::new(values, String::new())),
            Ok(_) => Err(invalid("not a JSON object".into())),
            Err(error) => Err(invalid(format!("not JSON: {error}"))),
        }
    }

    pub(super) fn new(values: Map<String, Value>, path: String) -> Self {
        Self { values, path, read: RefCell::default() }
    }

    /// The value of a key; null is as good as absent.
    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.read.borrow_mut().insert(key.to_owned());
        self.values.get(key).filter(|value| !value.is_null())
    }

    /// The same with what a class of Transformers takes for granted where the file has no such
    /// key; a key that is null stays null. `defaults` is a JSON object.
    pub(super) fn with_defaults(&self, defaults: &str) -> Self {
        let defaults: Map<String, Value> = match serde_json::from_str(defaults) {
            Ok(defaults) => defaults,
            Err(error) => unreachable!("defaults are written in this folder: {error}"),
        };
        let mut values = self.values.clone();
        for (key, value) in defaults {
            values.entry(key).or_insert(value);
        }
        Self { values, path: self.path.clone(), read: self.read.clone() }
    }

    /// The same under another `model_type`, without the keys that `is_other` names.
    pub(super) fn renamed(&self, model_type: &str, is_other: impl Fn(&str) -> bool) -> Self {
        let keep = self.values.iter().filter(|(key, _)| !is_other(key));
        let mut values: Map<String, Value> = keep.map(|(k, v)| (k.clone(), v.clone())).collect();
        values.insert("model_type".into(), model_type.into());
        Self::new(values, self.path.clone())
    }

    /// Whether a key says something; it is not read by that.
    pub(super) fn has(&self, key: &str) -> bool {
        self.values.get(key).is_some_and(|value| !value.is_null())
    }

    pub(super) fn wrong(&self, key: &str, rule: &str, value: &Value) -> LoadError {
        invalid(format!("`{}{key}` must be {rule}, not {value}", self.path))
    }

    pub(super) fn missing(&self, key: &str) -> LoadError {
        invalid(format!("`{}{key}` is missing", self.path))
    }

    pub(super) fn string(&self, key: &str) -> Result<&str> {
        let value = self.get(key).ok_or_else(|| self.missing(key))?;
        value.as_str().ok_or_else(|| self.wrong(key, "a string", value))
    }

    /// A whole number that fits 32 bits, so that products of two cannot overflow.
    pub(super) fn optional_usize(&self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_u64().and_then(|n| u32::try_from(n).ok()) {
            Some(n) => Ok(Some(n as usize)),
            None => Err(self.wrong(key, "a whole number below 2^32", value)),
        }
    }

    pub(super) fn usize(&self, key: &str) -> Result<usize> {
        self.optional_usize(key)?.ok_or_else(|| self.missing(key))
    }

    pub(super) fn optional_f64(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_f64().map(Some).ok_or_else(|| self.wrong(key, "a number", value))
    }

    pub(super) fn f64(&self, key: &str) -> Result<f64> {
        self.optional_f64(key)?.ok_or_else(|| self.missing(key))
    }

    /// A list of numbers.
    pub(super) fn numbers(&self, key: &str) -> Result<Vec<f64>> {
        let value = self.get(key).ok_or_else(|| self.missing(key))?;
        let numbers = value.as_array().and_then(|list| list.iter().map(Value::as_f64).collect());
        numbers.ok_or_else(|| self.wrong(key, "a list of numbers", value))
    }

    /// A switch that is off unless it is stated.
    pub(super) fn switch(&self, key: &str) -> Result<bool> {
        match self.get(key) {
            None => Ok(false),
            Some(value) => value.as_bool().ok_or_else(|| self.wrong(key, "true or false", value)),
        }
    }

    /// An object inside this one.
    pub(super) fn object(&self, key: &str) -> Result<Option<Self>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(values)) => {
                Ok(Some(Self::new(values.clone(), format!("{}{key}.", self.path))))
            }
            Some(value) => Err(self.wrong(key, "an object", value)),
        }
    }

    /// Refuses a key whose value is none of those that leave the mathematics as it is.
    pub(super) fn only(&self, key: &str, allowed: &[Value]) -> Result<()> {
        match self.get(key) {
            Some(value) if !allowed.contains(value) => {
                let allowed: Vec<String> = allowed.iter().map(Value::to_string).collect();
                let what = format!("`{}{key}` is {value}, which is not supported", self.path);
                Err(invalid(format!("{what} (supported: {})", allowed.join(", "))))
            }
            _ => Ok(()),
        }
    }

    /// Ids that end a text: one number or a list.
    pub(super) fn token_ids(&self, key: &str) -> Result<Vec<u32>> {
        let Some(value) = self.get(key) else { return Ok(Vec::new()) };
        parse_token_ids(value).ok_or_else(|| self.wrong(key, "a token id or a list of them", value))
    }

    /// Refuses packed weights, but for these methods.
    pub(super) fn refuse_quantization(&self, known: &[&str]) -> Result<()> {
        let Some(quantization) = self.get("quantization_config") else { return Ok(()) };
        let method = quantization.get("quant_method").and_then(Value::as_str).unwrap_or("unnamed");
        if known.contains(&method) {
            return Ok(());
        }
        Err(invalid(format!(
            "the weights are quantized (`quantization_config`, method `{method}`), which is not \
             supported yet; use the checkpoint in bf16, f16 or f32"
        )))
    }

    /// Refuses every key that was not read, is not neutral, and says something.
    pub(super) fn refuse_rest(&self, neutral: &[&str]) -> Result<()> {
        let read = self.read.borrow();
        for (key, value) in &self.values {
            let known = read.contains(key) || neutral.contains(&key.as_str());
            if !known && !value.is_null() && *value != Value::Bool(false) {
                return Err(LoadError::Unsupported {
                    key: format!("{}{key}", self.path),
                    value: value.to_string(),
                });
            }
        }
        Ok(())
    }
}

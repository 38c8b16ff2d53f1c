//! The sampling that a checkpoint's authors recommend, and the ids that end its sequences.
//!
//! A request's own values always win over these. Values of another type than expected are as if
//! absent: a recommendation must not keep a model from starting.

use serde_json::Value;

/// What `generation_config.json` says; `None` where it says nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationDefaults {
    /// 0 where the checkpoint asks for greedy decoding (`do_sample: false`).
    pub temperature: Option<f32>,
    /// Nucleus sampling's share of the probability.
    pub top_p: Option<f32>,
    /// How many tokens are kept; 0, which means all, is kept as it is.
    pub top_k: Option<u32>,
    /// The least probability, relative to the most probable token's.
    pub min_p: Option<f32>,
    /// Ids that end a sequence, without duplicates.
    pub eos_token_ids: Vec<u32>,
}

impl GenerationDefaults {
    /// `Null` stands for a missing file.
    pub(super) fn read(generation_config: &Value, config: &Value) -> Self {
        let mut defaults = GenerationDefaults::default();
        if generation_config["do_sample"].as_bool() == Some(false) {
            defaults.temperature = Some(0.0);
        } else {
            let number = |key: &str| generation_config[key].as_f64().map(|value| value as f32);
            defaults.temperature = number("temperature");
            defaults.top_p = number("top_p");
            defaults.top_k =
                generation_config["top_k"].as_u64().and_then(|value| u32::try_from(value).ok());
            defaults.min_p = number("min_p");
        }
        for eos in [
            &generation_config["eos_token_id"],
            &config["eos_token_id"],
            &config["text_config"]["eos_token_id"],
        ] {
            match eos {
                Value::Array(ids) => ids.iter().for_each(|id| defaults.add_eos(id)),
                id => defaults.add_eos(id),
            }
        }
        defaults
    }

    pub(super) fn add_eos_token_id(&mut self, id: Option<u32>) {
        if let Some(id) = id
            && !self.eos_token_ids.contains(&id)
        {
            self.eos_token_ids.push(id);
        }
    }

    fn add_eos(&mut self, id: &Value) {
        self.add_eos_token_id(id.as_u64().and_then(|id| u32::try_from(id).ok()));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn sampling(generation_config: &Value) -> [Option<f32>; 4] {
        let defaults = GenerationDefaults::read(generation_config, &Value::Null);
        let top_k = defaults.top_k.map(|top_k| top_k as f32);
        [defaults.temperature, defaults.top_p, top_k, defaults.min_p]
    }

    #[test]
    fn recommended_sampling_is_taken_unless_it_is_switched_off() {
        let values = json!({ "temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.1 });
        let with = |do_sample: Value| {
            let mut values = values.clone();
            values["do_sample"] = do_sample;
            values
        };
        let all = [Some(0.6), Some(0.95), Some(20.0), Some(0.1)];
        let greedy = [Some(0.0), None, None, None];
        for (config, expected) in [
            (values.clone(), all),
            (with(json!(true)), all),
            (with(json!(false)), greedy),
            (json!({ "top_k": 0, "temperature": 1 }), [Some(1.0), None, Some(0.0), None]),
            (json!({ "top_k": -1, "temperature": "hot", "top_p": null }), [None; 4]),
            (Value::Null, [None; 4]),
        ] {
            assert_eq!(sampling(&config), expected, "{config}");
        }
    }

    #[test]
    fn every_file_adds_its_eos_once() {
        for (generation_config, config, expected) in [
            (json!({ "eos_token_id": 7 }), Value::Null, &[7][..]),
            (json!({ "eos_token_id": [7, 8] }), json!({ "eos_token_id": 8 }), &[7, 8]),
            (Value::Null, json!({ "text_config": { "eos_token_id": [3] } }), &[3]),
            (json!({ "eos_token_id": [1, null, -1] }), json!({ "eos_token_id": null }), &[1]),
        ] {
            let defaults = GenerationDefaults::read(&generation_config, &config);
            assert_eq!(defaults.eos_token_ids, expected, "{generation_config} {config}");
        }
    }
}

//! The variables of TGI's launcher: none is passed over in silence.
//!
//! Each has one row in [`TABLE`]. What `serve` has a flag for is honoured there; the flags and
//! variables of all other rows are defined here, from the rows. One that changes no answer is
//! warned about by name; one whose absence would be felt in answers or safety ends the start.

mod table;

pub(crate) use table::Variable;

use clap::builder::BoolishValueParser;
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};
use tracing::warn;

/// Every variable that TGI's launcher takes, once.
pub(crate) const TABLE: &[Variable] = table::TABLE;

/// The heading of what is taken for TGI's sake alone.
pub(super) const HEADING: &str = "Compatibility with TGI";

/// How a variable can be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Also as a flag with a value, of this name.
    Value(&'static str),
    /// Also as a flag that is on or off.
    Switch,
    /// In the environment alone.
    Environment,
}

/// What becomes of a variable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It does what it does in TGI; the note says what is not the same.
    Honoured(&'static str),
    /// It does nothing, and says so, for this reason.
    Ignored(&'static str),
    /// It ends the start: the rule, and what to do.
    Refused(&'static str),
}

/// What was given of the variables that are not honoured.
#[derive(Clone, Debug, Default)]
pub(crate) struct TgiArgs {
    given: Vec<Given>,
}

#[derive(Clone, Debug)]
struct Given {
    /// As it was given: `NUM_SHARD` or `--num-shard`.
    name: String,
    fate: Fate,
    /// Kept where it is told: any other may be a secret.
    value: Option<String>,
}

impl Variable {
    /// The name of its argument.
    pub(crate) fn id(&self) -> String {
        self.name.to_lowercase()
    }

    fn flag(&self) -> String {
        self.id().replace('_', "-")
    }

    /// The flag that is defined here, unless the variable is honoured or has none.
    fn arg(&self) -> Option<Arg> {
        let help = match self.fate {
            Fate::Honoured(_) => return None,
            Fate::Ignored(reason) => format!("No effect: {reason}"),
            Fate::Refused(rule) => format!("Refused: {rule}"),
        };
        let arg = Arg::new(self.id())
            .long(self.flag())
            .env(self.name)
            .help(help)
            .help_heading(HEADING)
            .hide_short_help(true);
        match self.form {
            Form::Value(name) => Some(arg.value_name(name)),
            Form::Switch => Some(switch(arg)),
            Form::Environment => None,
        }
    }

    fn given(&self, name: String, value: &str) -> Option<Given> {
        let value = value.trim();
        if value.is_empty() || self.neutral.contains(&value.to_lowercase().as_str()) {
            return None;
        }
        let is_told = matches!(self.fate, Fate::Refused(_));
        Some(Given { name, fate: self.fate, value: is_told.then(|| value.to_owned()) })
    }

    /// What the command line or the environment says about a row that is not honoured.
    fn find(&self, matches: &ArgMatches) -> Option<Given> {
        if let Fate::Honoured(_) = self.fate {
            return None;
        }
        if self.form == Form::Environment {
            let value = std::env::var_os(self.name)?;
            return self.given(self.name.to_owned(), &value.to_string_lossy());
        }
        let value = match self.form {
            Form::Switch => matches.get_one::<bool>(&self.id())?.to_string(),
            _ => matches.get_one::<String>(&self.id())?.clone(),
        };
        let by_flag = matches.value_source(&self.id()) == Some(ValueSource::CommandLine);
        let name = if by_flag { format!("--{}", self.flag()) } else { self.name.to_owned() };
        self.given(name, &value)
    }
}

/// A flag that is on where it stands alone, and otherwise what it says: `--flag`, `--flag=false`.
pub(super) fn switch(arg: Arg) -> Arg {
    arg.value_name("BOOL")
        .num_args(0..=1)
        .require_equals(true)
        .default_missing_value("true")
        .value_parser(BoolishValueParser::new())
}

impl Args for TgiArgs {
    fn augment_args(command: Command) -> Command {
        command.args(TABLE.iter().filter_map(Variable::arg))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for TgiArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<TgiArgs, clap::Error> {
        let given = TABLE.iter().filter_map(|variable| variable.find(matches)).collect();
        Ok(TgiArgs { given })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl TgiArgs {
    /// Refuses what must not be passed over: the variable, its value, the rule, what to do.
    pub(super) fn check(&self) -> Result<(), String> {
        let refusal = self.given.iter().find_map(|given| match given.fate {
            Fate::Refused(rule) => {
                let value = given.value.as_deref().unwrap_or_default();
                Some(format!("{} ({value}) is not supported: {rule}", given.name))
            }
            _ => None,
        });
        refusal.map_or(Ok(()), Err)
    }

    /// Names what has no effect.
    pub(crate) fn warn(&self) {
        for given in &self.given {
            if let Fate::Ignored(reason) = given.fate {
                warn!(variable = given.name, reason, "has no effect");
            }
        }
    }
}

#[cfg(test)]
mod tests;

//! Grammars: which tokens may follow, worked out beside the forward pass.
//!
//! A constrained sequence holds a [`Constrained`]: a matcher that has read its output so far, and
//! the [`Mask`] of the tokens that may come next. A mask is worked out by a thread of [`Grammars`]
//! when the sequence is added (compile, read what was sampled before) and whenever a token was
//! sampled, while the engine thread goes on to the next forward pass. Whoever samples waits for
//! what is left of that work; nobody else does.
//!
//! The language and its matcher are llguidance's; this module knows tokens and bytes. It knows
//! neither steps nor logits.

mod compile;
mod follow;
mod pool;
#[cfg(test)]
mod tests;
mod vocabulary;

use std::borrow::Cow;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use llguidance::Matcher;
use llguidance::toktrie::SimpleVob;
use millstream_proto::Grammar;

use crate::model::RowFailure;
use compile::Compiler;
use follow::Follower;
use pool::Pool;

/// The grammars of one model; cheap to clone.
#[derive(Clone)]
pub struct Grammars(Arc<Shared>);

struct Shared {
    compiler: Arc<Compiler>,
    pool: Pool,
}

impl Grammars {
    /// For a model with this `tokenizer.json`, whose tokens have ids below `vocab_size`. Reading it
    /// begins at once, on a thread of its own; what is wrong with it fails the sequences that have
    /// a grammar, and nothing else.
    pub fn new(tokenizer: Cow<'static, [u8]>, vocab_size: usize) -> std::io::Result<Self> {
        let compiler = Arc::new(Compiler::new(tokenizer, vocab_size));
        let pool = Pool::start()?;
        let begun = compiler.clone();
        pool.run(move || drop(begun.factory()));
        Ok(Grammars(Arc::new(Shared { compiler, pool })))
    }

    /// Why no sequence can be constrained; empty if they can. Waits until the vocabulary is read.
    pub fn problem(&self) -> String {
        self.0.compiler.factory().err().unwrap_or_default()
    }

    /// Begins to constrain a sequence whose output so far is `output`.
    pub fn begin(&self, grammar: Grammar, output: Vec<u32>) -> Constrained {
        let cell = Arc::new(Cell { state: Mutex::new(State::Working), ready: Condvar::new() });
        let (compiler, to) = (self.0.compiler.clone(), cell.clone());
        self.0.pool.run(move || {
            to.work(|| Follower::begin(compiler, grammar, output));
        });
        Constrained { cell, grammars: self.clone() }
    }
}

impl fmt::Debug for Grammars {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Grammars")
    }
}

/// A sequence's place in its grammar. Clones are one and the same place.
#[derive(Clone)]
pub struct Constrained {
    cell: Arc<Cell>,
    grammars: Grammars,
}

struct Cell {
    state: Mutex<State>,
    ready: Condvar,
}

/// The text lies here between two tokens, and is with a thread of the pool in between.
enum State {
    Working,
    Ready(Box<(Follower, Mask)>),
    Failed(String),
}

impl Constrained {
    /// Gives `read` the mask for the next token; waits until it is worked out.
    pub fn with_mask<T>(&self, read: impl FnOnce(&Mask) -> T) -> Result<T, RowFailure> {
        let mut state = self.cell.lock();
        loop {
            match &*state {
                State::Ready(ready) => return Ok(read(&ready.1)),
                State::Failed(reason) => return Err(RowFailure::grammar(reason.clone())),
                State::Working => {
                    let waited = self.cell.ready.wait(state);
                    state = waited.unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }

    /// The sequence goes on with `token`: begins to work out what may follow it.
    pub fn advance(&self, token: u32) {
        let mut state = self.cell.lock();
        let State::Ready(ready) = std::mem::replace(&mut *state, State::Working) else {
            *state = State::Failed("a token was sampled before its mask was known".into());
            return;
        };
        drop(state);
        let (text, _) = *ready;
        let to = self.cell.clone();
        self.grammars.0.pool.run(move || to.work(|| text.advance(token)));
    }
}

impl fmt::Debug for Constrained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Constrained")
    }
}

impl Cell {
    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is replaced as a whole, so it is sound whoever panicked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads on in a text, and tells whoever waits for its mask.
    fn work(&self, read: impl FnOnce() -> Result<(Follower, Mask), String>) {
        let begun = Instant::now();
        let result = pool::catch(|| {
            let (text, mask) = read()?;
            Ok((text, Mask { took: begun.elapsed(), ..mask }))
        });
        *self.lock() = match result {
            Ok(ready) => State::Ready(Box::new(ready)),
            Err(reason) => State::Failed(reason),
        };
        self.ready.notify_all();
    }
}

/// The tokens that may come next.
pub struct Mask {
    /// A bit for each token; `None` where no token of the text may follow.
    allowed: Option<SimpleVob>,
    may_end: bool,
    took: Duration,
}

/// What a matcher allows next.
fn allowed(matcher: &mut Matcher) -> Result<Mask, String> {
    let took = Duration::ZERO;
    if matcher.is_stopped() {
        let reason = matcher.stop_reason();
        return match reason.is_ok() {
            true => Ok(Mask { allowed: None, may_end: true, took }),
            false => Err(matcher.get_error().unwrap_or_else(|| reason.to_string())),
        };
    }
    let allowed = matcher.compute_mask().map_err(|error| error.to_string())?;
    let may_end = allowed.get(vocabulary::end_of_text(&allowed));
    Ok(Mask { allowed: Some(allowed), may_end, took })
}

impl Mask {
    /// Whether the output may end here.
    pub fn may_end(&self) -> bool {
        self.may_end
    }

    /// How long a thread worked on it: it read a token, or at the beginning of a text compiled the
    /// grammar.
    pub fn took(&self) -> Duration {
        self.took
    }

    /// Whether the output must end here.
    pub fn must_end(&self) -> bool {
        let end = usize::from(self.may_end);
        self.allowed.as_ref().is_none_or(|allowed| allowed.num_set() == end)
    }

    /// The same as bits of `words`, one for each token and 1 where it may follow; `bans` the `stop`
    /// tokens besides, because the text is too short.
    pub fn write(&self, words: &mut [u32], stop: &[u32], bans: bool) {
        let allowed = self.allowed.as_ref().map_or(&[][..], SimpleVob::as_slice);
        let mut allowed = allowed.iter().copied();
        words.fill_with(|| allowed.next().unwrap_or(0));
        for &token in stop {
            let (word, bit) = (token as usize / 32, 1 << (token % 32));
            let Some(word) = words.get_mut(word) else { continue };
            *word = match (bans, self.may_end) {
                (true, _) => *word & !bit,
                (false, true) => *word | bit,
                (false, false) => *word,
            };
        }
    }

    /// Bans, with -inf, every token that may not follow: of the `stop` tokens, which end the text,
    /// those that the grammar does not allow either way.
    pub fn apply(&self, logits: &mut [f32], stop: &[u32]) {
        let ending = match self.may_end {
            true => stop,
            false => &[],
        };
        let kept: Vec<(usize, f32)> = ending
            .iter()
            .filter_map(|&token| logits.get(token as usize).map(|logit| (token as usize, *logit)))
            .collect();
        let words = self.allowed.as_ref().map_or(&[][..], SimpleVob::as_slice);
        let mut words = words.iter();
        for logits in logits.chunks_mut(u32::BITS as usize) {
            match words.next().copied().unwrap_or(0) {
                0 => logits.fill(f32::NEG_INFINITY),
                u32::MAX => {}
                word => {
                    for (bit, logit) in logits.iter_mut().enumerate() {
                        if word & (1 << bit) == 0 {
                            *logit = f32::NEG_INFINITY;
                        }
                    }
                }
            }
        }
        for (token, logit) in kept {
            logits[token] = logit;
        }
    }
}

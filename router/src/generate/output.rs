//! What a generation has produced and its reader has not taken yet: the only thing that the pump
//! and a client's connection share.
//!
//! One lock, held for a copy of a few bytes by either side. Per choice the text waits in one
//! string, cut into *pieces*: one piece per token that made text visible, until [`MAX_PIECES`]
//! wait; from then on the text grows the last piece. So a reader that keeps up sees every token
//! on its own, one that does not sees the same text in fewer pieces, and the memory is bounded by
//! the text itself.
//!
//! Neither side waits for the other: the pump appends and wakes, the reader swaps and goes.

use std::sync::Mutex;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use super::{Finish, TokenEntry};

/// Pieces of one choice that wait unmerged.
const MAX_PIECES: usize = 64;

/// One piece of a choice's text, by where it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// End in [`ChoiceOutput::text`], in bytes.
    pub text_end: usize,
    /// End in [`ChoiceOutput::tokens`].
    pub tokens_end: usize,
}

/// What one choice produced since its reader last looked.
#[derive(Debug, Default)]
pub struct ChoiceOutput {
    /// The new text.
    pub text: String,
    /// Its pieces, in order; together they cover `text` and `tokens`.
    pub pieces: Vec<Piece>,
    /// Where log-probabilities were asked for: the tokens whose text has become visible.
    pub tokens: Vec<TokenEntry>,
    /// Where they were asked for, once, before the first piece: the tokens of the prompt.
    pub prompt: Vec<TokenEntry>,
    /// The end of this choice. Nothing follows it.
    pub finish: Option<Finish>,
}

impl ChoiceOutput {
    fn clear(&mut self) {
        self.text.clear();
        self.pieces.clear();
        self.tokens.clear();
        self.prompt.clear();
        self.finish = None;
    }
}

/// What the pump adds to one choice at a time.
pub(crate) struct News<'a> {
    pub(crate) text: &'a str,
    /// Left empty.
    pub(crate) tokens: &'a mut Vec<TokenEntry>,
    pub(crate) finish: Option<Finish>,
}

struct Inner {
    choices: Vec<ChoiceOutput>,
    ended: Vec<bool>,
    /// Choices without their end; 0 means that nothing more will come.
    num_running: usize,
    waker: Option<Waker>,
    /// Since when something has been waiting for the reader.
    unread_since: Option<Instant>,
}

/// The buffer between the pump and one reader.
pub(crate) struct Output {
    inner: Mutex<Inner>,
    /// False: the reader wants everything at once, and is woken by the last end only.
    streamed: bool,
}

impl Output {
    pub(crate) fn new(num_choices: usize, streamed: bool) -> Output {
        let inner = Inner {
            choices: (0..num_choices).map(|_| ChoiceOutput::default()).collect(),
            ended: vec![false; num_choices],
            num_running: num_choices,
            waker: None,
            unread_since: None,
        };
        Output { inner: Mutex::new(inner), streamed }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().expect("nothing panics while it holds an output")
    }

    /// Hands over what is known of a prompt; the first news of its choice.
    pub(crate) fn score(&self, choice: usize, prompt: Vec<TokenEntry>) {
        self.lock().choices[choice].prompt = prompt;
    }

    /// Appends a piece and perhaps the end, and returns whom to wake.
    ///
    /// What comes after the end of a choice is dropped.
    pub(crate) fn push(&self, choice: usize, news: News<'_>, now: Instant) -> Option<Waker> {
        let News { text, tokens, finish } = news;
        let mut guard = self.lock();
        let inner = &mut *guard;
        if inner.ended[choice] {
            tokens.clear();
            return None;
        }
        let output = &mut inner.choices[choice];
        if !text.is_empty() || !tokens.is_empty() {
            output.text.push_str(text);
            output.tokens.append(tokens);
            let piece = Piece { text_end: output.text.len(), tokens_end: output.tokens.len() };
            if output.pieces.len() == MAX_PIECES || (!self.streamed && !output.pieces.is_empty()) {
                output.pieces.pop();
            }
            output.pieces.push(piece);
        } else if finish.is_none() {
            return None;
        }
        if finish.is_some() {
            output.finish = finish;
            inner.ended[choice] = true;
            inner.num_running -= 1;
        }
        if !self.streamed && inner.num_running > 0 {
            return None;
        }
        inner.unread_since.get_or_insert(now);
        inner.waker.take()
    }

    /// Swaps what is waiting into `taken`, which must have the same number of choices.
    ///
    /// `Ready(false)` means that everything has been taken, ends included.
    pub(crate) fn poll_take(
        &self,
        context: &Context<'_>,
        taken: &mut Vec<ChoiceOutput>,
    ) -> Poll<bool> {
        let mut inner = self.lock();
        if inner.unread_since.is_none() {
            if inner.num_running == 0 {
                return Poll::Ready(false);
            }
            match &mut inner.waker {
                Some(waker) => waker.clone_from(context.waker()),
                None => inner.waker = Some(context.waker().clone()),
            }
            return Poll::Pending;
        }
        debug_assert_eq!(taken.len(), inner.choices.len());
        taken.iter_mut().for_each(ChoiceOutput::clear);
        std::mem::swap(taken, &mut inner.choices);
        inner.unread_since = None;
        Poll::Ready(true)
    }

    /// True once every choice has its end, taken or not.
    pub(crate) fn has_ended(&self) -> bool {
        self.lock().num_running == 0
    }

    /// True if the reader has left something lying for longer than `timeout`.
    pub(crate) fn is_abandoned(&self, timeout: Duration, now: Instant) -> bool {
        self.lock().unread_since.is_some_and(|since| now.duration_since(since) > timeout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(output: &Output, choice: usize, text: &str, finish: Option<Finish>) -> Option<Waker> {
        output.push(choice, News { text, tokens: &mut Vec::new(), finish }, Instant::now())
    }

    fn take(output: &Output) -> Option<Vec<ChoiceOutput>> {
        let mut taken = vec![ChoiceOutput::default()];
        match output.poll_take(&Context::from_waker(Waker::noop()), &mut taken) {
            Poll::Ready(true) => Some(taken),
            Poll::Ready(false) | Poll::Pending => None,
        }
    }

    #[test]
    fn a_reader_that_keeps_up_sees_every_piece_and_one_that_does_not_sees_the_same_text() {
        let output = Output::new(1, true);
        let mut whole = String::new();
        for i in 0..MAX_PIECES * 3 {
            let text = format!("{i} ");
            push(&output, 0, &text, None);
            whole.push_str(&text);
            if i == 0 {
                let taken = take(&output).unwrap();
                assert_eq!((taken[0].text.as_str(), taken[0].pieces.len()), ("0 ", 1));
            }
        }
        let taken = take(&output).unwrap();
        assert_eq!(taken[0].pieces.len(), MAX_PIECES);
        assert_eq!(taken[0].pieces.last().unwrap().text_end, taken[0].text.len());
        assert_eq!(format!("0 {}", taken[0].text), whole);
        assert!(take(&output).is_none());
    }

    #[test]
    fn nothing_follows_the_end_of_a_choice() {
        let output = Output::new(1, true);
        push(&output, 0, "a", Some(Finish::failed("first")));
        push(&output, 0, "b", Some(Finish::failed("second")));
        let taken = take(&output).unwrap();
        assert_eq!(taken[0].text, "a");
        assert_eq!(taken[0].finish, Some(Finish::failed("first")));
        assert!(output.has_ended());
    }

    #[test]
    fn a_reader_of_the_whole_answer_is_left_alone_until_the_last_choice_ends() {
        let output = Output::new(2, false);
        let mut taken = vec![ChoiceOutput::default(), ChoiceOutput::default()];
        let context = Context::from_waker(Waker::noop());
        assert!(output.poll_take(&context, &mut taken).is_pending());
        let end = || Some(Finish::failed("end"));
        assert!(push(&output, 0, "a", end()).is_none());
        assert!(!output.is_abandoned(Duration::ZERO, Instant::now() + Duration::from_secs(9)));
        assert!(output.poll_take(&context, &mut taken).is_pending());
        assert!(push(&output, 1, "b", end()).is_some());
        assert_eq!(output.poll_take(&context, &mut taken), Poll::Ready(true));
        assert_eq!((taken[0].text.as_str(), taken[1].text.as_str()), ("a", "b"));
        assert_eq!(output.poll_take(&context, &mut taken), Poll::Ready(false));
    }
}

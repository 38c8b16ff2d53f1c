//! Stop strings, found across token borders.
//!
//! The match that *ends* first wins: a stream cannot know of a later end. Among stops that end
//! together the longest wins, which is the one that began first, so nothing of a stop is sent.
//! What could still become a match is held back, and nothing else: the held text is always the
//! longest suffix of all text that is a proper prefix of a stop string.

/// Looks for stop strings in the text of one sequence.
pub struct StopMatcher {
    stops: Vec<Stop>,
    include_stop: bool,
    /// Text that may belong to a stop string.
    held: String,
}

/// A stop string as an automaton (Knuth, Morris and Pratt).
struct Stop {
    text: String,
    /// `failure[n]`: the longest proper prefix of `text` that ends its first `n + 1` bytes.
    failure: Vec<usize>,
    /// How many bytes of `text` end the text so far.
    num_matched: usize,
}

impl StopMatcher {
    /// Empty stop strings match nothing; they are refused where requests are validated.
    /// `include_stop` leaves the stop string that matched in the text.
    pub fn new(stops: Vec<String>, include_stop: bool) -> Self {
        let stops = stops.into_iter().filter(|text| !text.is_empty()).map(Stop::new).collect();
        StopMatcher { stops, include_stop, held: String::new() }
    }

    /// Appends to `out` what is certain not to belong to a stop string. Where one is complete,
    /// `out` gets the text before it (or up to its end), the stop string is returned, and the
    /// rest of `text` is dropped: the sequence is over.
    pub fn push(&mut self, text: &str, out: &mut String) -> Option<String> {
        if self.stops.is_empty() {
            out.push_str(text);
            return None;
        }
        for (index, byte) in text.bytes().enumerate() {
            let mut found: Option<&Stop> = None;
            for stop in &mut self.stops {
                if stop.advance(byte)
                    && found.is_none_or(|found| found.text.len() < stop.text.len())
                {
                    found = Some(stop);
                }
            }
            if let Some(found) = found {
                let found = found.text.clone();
                self.held.push_str(&text[..=index]);
                let keep = if self.include_stop { 0 } else { found.len() };
                out.push_str(&self.held[..self.held.len() - keep]);
                self.reset();
                return Some(found);
            }
        }
        self.held.push_str(text);
        let num_held = self.stops.iter().map(|stop| stop.num_matched).max().unwrap_or(0);
        out.extend(self.held.drain(..self.held.len() - num_held));
        None
    }

    /// Appends what is held back: the text ended without a stop string.
    pub fn finish(&mut self, out: &mut String) {
        out.push_str(&self.held);
        self.reset();
    }

    /// Whether text is held back.
    pub fn is_holding(&self) -> bool {
        !self.held.is_empty()
    }

    fn reset(&mut self) {
        self.held.clear();
        self.stops.iter_mut().for_each(|stop| stop.num_matched = 0);
    }
}

impl Stop {
    fn new(text: String) -> Self {
        let bytes = text.as_bytes();
        let mut failure = vec![0; bytes.len()];
        let mut length = 0;
        for index in 1..bytes.len() {
            while length > 0 && bytes[index] != bytes[length] {
                length = failure[length - 1];
            }
            if bytes[index] == bytes[length] {
                length += 1;
            }
            failure[index] = length;
        }
        Stop { text, failure, num_matched: 0 }
    }

    /// Takes one byte; true when the stop string is complete.
    fn advance(&mut self, byte: u8) -> bool {
        let bytes = self.text.as_bytes();
        while self.num_matched > 0 && bytes[self.num_matched] != byte {
            self.num_matched = self.failure[self.num_matched - 1];
        }
        if bytes[self.num_matched] == byte {
            self.num_matched += 1;
        }
        self.num_matched == bytes.len()
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    fn matcher(stops: &[&str], include_stop: bool) -> StopMatcher {
        StopMatcher::new(stops.iter().map(|stop| (*stop).to_owned()).collect(), include_stop)
    }

    /// What a search on the whole text finds: the match that ends first, then the longest.
    fn naive(text: &str, stops: &[&str], include_stop: bool) -> (String, Option<String>) {
        let found = stops
            .iter()
            .filter(|stop| !stop.is_empty())
            .filter_map(|stop| text.find(stop).map(|begin| (begin + stop.len(), begin, *stop)))
            .min();
        match found {
            Some((end, begin, stop)) => {
                let end = if include_stop { end } else { begin };
                (text[..end].to_owned(), Some(stop.to_owned()))
            }
            None => (text.to_owned(), None),
        }
    }

    /// The longest suffix of `text` that is a proper prefix of a stop.
    fn naive_held<'a>(text: &'a str, stops: &[&str]) -> &'a str {
        (0..text.len())
            .filter(|&begin| text.is_char_boundary(begin))
            .map(|begin| &text[begin..])
            .find(|suffix| {
                stops.iter().any(|stop| stop.len() > suffix.len() && stop.starts_with(suffix))
            })
            .unwrap_or("")
    }

    /// Feeds `text` in pieces that end at the set bits of `cuts`, and compares after each.
    fn check(text: &str, stops: &[&str], include_stop: bool, cuts: u32) {
        let context = format!("{text:?} {stops:?} {include_stop} {cuts:b}");
        let mut matcher = matcher(stops, include_stop);
        let mut out = String::new();
        let mut begin = 0;
        let borders: Vec<usize> = text.char_indices().map(|(index, _)| index).skip(1).collect();
        let ends = borders.iter().enumerate().filter(|(bit, _)| cuts >> bit & 1 == 1);
        for end in ends.map(|(_, end)| *end).chain([text.len()]) {
            let stop = matcher.push(&text[begin..end], &mut out);
            begin = end;
            let (expected, expected_stop) = naive(&text[..end], stops, include_stop);
            assert_eq!(stop, expected_stop, "{context}");
            if stop.is_some() {
                assert_eq!(out, expected, "{context}");
                assert!(!matcher.is_holding());
                return;
            }
            let held = naive_held(&text[..end], stops);
            assert_eq!(format!("{out}{held}"), expected, "{context}");
            assert_eq!(matcher.is_holding(), !held.is_empty(), "{context}");
        }
        matcher.finish(&mut out);
        assert_eq!(out, text, "{context}");
        assert!(!matcher.is_holding());
    }

    #[test]
    fn every_way_to_cut_a_text_gives_the_same_answer() {
        for (text, stops) in [
            ("abababc", &["ababc"][..]),
            ("aaab aab", &["aab"]),
            ("xabcdy", &["bc", "abcd"]),
            ("xabcdy", &["cd", "abcd", "d"]),
            ("one\n\ntwo", &["\n\n", "two"]),
            ("Usér: äö", &["ér: ö", "ä", "ö"]),
            ("你好吗", &["好吗", "好你"]),
            ("no stop", &["STOP"]),
            ("almost STO", &["STOP", ""]),
            ("", &["a"]),
            ("anything", &[]),
        ] {
            let cuts = 1_u32 << text.chars().count().saturating_sub(1);
            for cut in 0..cuts {
                check(text, stops, false, cut);
                check(text, stops, true, cut);
            }
        }
    }

    #[test]
    fn random_texts_stop_where_a_naive_search_stops() {
        let mut random = StdRng::seed_from_u64(4);
        let word = |random: &mut StdRng, max: usize| -> String {
            (0..random.random_range(1..=max))
                .map(|_| ['a', 'b', 'é'][random.random_range(0..3)])
                .collect()
        };
        for _ in 0..3_000 {
            let stops: Vec<String> =
                (0..random.random_range(1..4)).map(|_| word(&mut random, 5)).collect();
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let text = word(&mut random, 20);
            check(&text, &stops, random.random(), random.random());
        }
    }

    #[test]
    fn text_that_cannot_become_a_stop_is_sent_at_once() {
        let mut matcher = matcher(&["\nUser:"], false);
        let mut out = String::new();
        assert_eq!(matcher.push("Hello\nUse", &mut out), None);
        assert_eq!(out, "Hello");
        assert!(matcher.is_holding());
        assert_eq!(matcher.push("less", &mut out), None);
        assert_eq!(out, "Hello\nUseless");
        assert!(!matcher.is_holding());
    }
}

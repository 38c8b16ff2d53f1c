//! `strftime` for the dates that templates put into system prompts.

use std::time::{SystemTime, UNIX_EPOCH};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] =
    ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// A moment in UTC, in the Gregorian calendar.
struct Date {
    year: i64,
    /// 1..=12
    month: i64,
    /// 1..=31
    day: i64,
    /// Days since Sunday.
    weekday: i64,
    /// Days since 1 January.
    day_of_year: i64,
    seconds_of_day: i64,
}

impl Date {
    fn new(now: SystemTime) -> Self {
        let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let seconds = i64::try_from(seconds).unwrap_or(0);
        let days = seconds.div_euclid(86_400);
        // Howard Hinnant's civil_from_days: years begin in March, so that the leap day is last.
        let shifted = days + 719_468;
        let era = shifted.div_euclid(146_097);
        let day_of_era = shifted.rem_euclid(146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_march_year =
            day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let march_month = (5 * day_of_march_year + 2) / 153;
        let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
        let year = year_of_era + era * 400 + i64::from(month <= 2);
        let leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
        let day_of_year = if month > 2 {
            day_of_march_year + 59 + i64::from(leap)
        } else {
            day_of_march_year - 306
        };
        Date {
            year,
            month,
            day: day_of_march_year - (153 * march_month + 2) / 5 + 1,
            weekday: (days + 4).rem_euclid(7),
            day_of_year,
            seconds_of_day: seconds.rem_euclid(86_400),
        }
    }

    /// What `%c` stands for; `None` for a letter that stands for nothing.
    fn field(&self, letter: char) -> Option<String> {
        let month = MONTHS[usize::try_from(self.month - 1).ok()?];
        let weekday = WEEKDAYS[usize::try_from(self.weekday).ok()?];
        let hour = self.seconds_of_day / 3_600;
        let minute = self.seconds_of_day / 60 % 60;
        let second = self.seconds_of_day % 60;
        let hour_of_half = if hour % 12 == 0 { 12 } else { hour % 12 };
        Some(match letter {
            'Y' => self.year.to_string(),
            'y' => format!("{:02}", self.year.rem_euclid(100)),
            'm' => format!("{:02}", self.month),
            'd' => format!("{:02}", self.day),
            'e' => format!("{:2}", self.day),
            'j' => format!("{:03}", self.day_of_year + 1),
            'B' => month.to_owned(),
            'b' | 'h' => month[..3].to_owned(),
            'A' => weekday.to_owned(),
            'a' => weekday[..3].to_owned(),
            'w' => self.weekday.to_string(),
            'u' => if self.weekday == 0 { 7 } else { self.weekday }.to_string(),
            'H' => format!("{hour:02}"),
            'I' => format!("{hour_of_half:02}"),
            'M' => format!("{minute:02}"),
            'S' => format!("{second:02}"),
            'f' => "000000".to_owned(),
            'p' => if hour < 12 { "AM" } else { "PM" }.to_owned(),
            'F' => format!("{:04}-{:02}-{:02}", self.year, self.month, self.day),
            'D' | 'x' => {
                format!("{:02}/{:02}/{:02}", self.month, self.day, self.year.rem_euclid(100))
            }
            'T' | 'X' => format!("{hour:02}:{minute:02}:{second:02}"),
            'R' => format!("{hour:02}:{minute:02}"),
            'c' => format!(
                "{} {} {:2} {hour:02}:{minute:02}:{second:02} {}",
                &weekday[..3],
                &month[..3],
                self.day,
                self.year
            ),
            // A datetime without a zone prints nothing for its zone.
            'Z' | 'z' => String::new(),
            'n' => "\n".to_owned(),
            't' => "\t".to_owned(),
            '%' => "%".to_owned(),
            _ => return None,
        })
    }
}

/// `now` in UTC as `format` asks for; an unknown field stays as it is.
pub(super) fn strftime(format: &str, now: SystemTime) -> String {
    let date = Date::new(now);
    let mut text = String::new();
    let mut chars = format.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        // `%-d` is `%d` without the padding.
        let bare = chars.next_if_eq(&'-').is_some();
        let Some(letter) = chars.next() else {
            text.push('%');
            break;
        };
        match date.field(letter) {
            Some(field) if bare => {
                let short = field.trim_start_matches(['0', ' ']);
                text.push_str(if short.is_empty() { "0" } else { short });
            }
            Some(field) => text.push_str(&field),
            None => text.extend(['%', letter]),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn check(seconds: u64, format: &str, expected: &str) {
        let now = UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!(strftime(format, now), expected, "{seconds}");
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, expected) in [
            (0, "1970-01-01 00:00:00 001 Thu AM 12 1 1 0"),
            (951_782_400, "2000-02-29 00:00:00 060 Tue AM 12 29 2 0"),
            (951_868_799, "2000-02-29 23:59:59 060 Tue PM 11 29 2 23"),
            (1_072_915_199, "2003-12-31 23:59:59 365 Wed PM 11 31 12 23"),
            (1_709_164_800, "2024-02-29 00:00:00 060 Thu AM 12 29 2 0"),
            (1_709_251_200, "2024-03-01 00:00:00 061 Fri AM 12 1 3 0"),
            (1_735_689_599, "2024-12-31 23:59:59 366 Tue PM 11 31 12 23"),
            (1_719_792_000, "2024-07-01 00:00:00 183 Mon AM 12 1 7 0"),
            (4_107_542_400, "2100-03-01 00:00:00 060 Mon AM 12 1 3 0"),
        ] {
            check(seconds, "%Y-%m-%d %H:%M:%S %j %a %p %I %-d %-m %-H", expected);
        }
    }

    #[test]
    fn fields_are_written_as_in_python() {
        let format = "%A, %B %e, %y|%c|%x %X|%F %T %R %D|%-I:%M %p|%w %u|%h|%Z%z|%%|%n%t|%f";
        let expected = "Tuesday, March  5, 24|Tue Mar  5 00:04:09 2024|03/05/24 00:04:09|\
                        2024-03-05 00:04:09 00:04 03/05/24|12:04 AM|2 2|Mar||%|\n\t|000000";
        check(1_709_597_049, format, expected);
        check(0, "100% %Q %-Q %", "100% %Q %Q %");
    }
}

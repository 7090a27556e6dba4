//! What every page is made of: its frame, its sections, text from outside.

use std::fmt::Write;

/// A whole page; everything given is HTML.
pub fn page(kind: &str, title: &str, lead: &str, body: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title} – Prunella</title>\n<style>\n{}</style>\n</head>\n<body>\n<main>\n\
         <header><div class=\"eyebrow\">Prunella · {kind}</div><h1>{title}</h1><p class=\"lead\">{lead}</p></header>\
         {body}<footer>Made by prunella {}</footer>\n</main>\n</body>\n</html>\n",
        include_str!("style.css"),
        env!("CARGO_PKG_VERSION")
    )
}

/// `text` with the characters HTML gives a meaning to written out.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c => out.push(c),
        }
    }
    out
}

/// Opens a section; `hint` is HTML.
pub fn section(page: &mut String, title: &str, hint: &str) {
    let _ = write!(page, "<section><h2>{title}</h2><p class=\"hint\">{hint}</p>");
}

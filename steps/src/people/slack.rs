//! Messages in the form of Slack: a text for notifications and for servers that know no blocks, and blocks with fields.

use serde_json::{Value, json};

/// What Slack takes in one block of text, in one field, and how many fields; more is refused, and the message lost.
const TEXT_LIMIT: usize = 3000;
const FIELD_LIMIT: usize = 2000;
const FIELDS_IN_BLOCK: usize = 10;
const BLOCKS_LIMIT: usize = 50;

/// Writes a message with its fields, each a name and a value.
pub(super) fn message(text: &str, fields: &[(String, String)]) -> Value {
    let mut blocks = vec![json!({ "type": "section", "text": mrkdwn(text, TEXT_LIMIT) })];
    for some in fields.chunks(FIELDS_IN_BLOCK).take(BLOCKS_LIMIT - 1) {
        let some: Vec<_> = some.iter().map(|(name, value)| field(name, value)).collect();
        blocks.push(json!({ "type": "section", "fields": some }));
    }
    json!({ "text": escaped(text), "blocks": blocks })
}

fn field(name: &str, value: &str) -> Value {
    let name = escaped(name);
    // An empty text is refused.
    let value = if value.trim().is_empty() { "–".to_owned() } else { escaped(value) };
    json!({ "type": "mrkdwn", "text": cut(&format!("*{name}*\n{value}"), FIELD_LIMIT) })
}

fn mrkdwn(text: &str, limit: usize) -> Value {
    let text = if text.trim().is_empty() { "–".to_owned() } else { escaped(text) };
    json!({ "type": "mrkdwn", "text": cut(&text, limit) })
}

/// Takes the meaning from the three signs that Slack reads as markup: what a step found must ring nobody's phone.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Cuts a text that is too long, never within an escaped sign.
fn cut(text: &str, limit: usize) -> String {
    if text.chars().count() <= limit {
        return text.to_owned();
    }
    let mut kept: String = text.chars().take(limit - 1).collect();
    if let Some(at) = kept.rfind('&').filter(|at| !kept[*at..].contains(';')) {
        kept.truncate(at);
    }
    kept + "…"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_has_a_text_and_blocks_with_fields() {
        let fields = [("Run".to_owned(), "1a2b".to_owned()), ("Lost".to_owned(), String::new())];
        let message = message("a < b & <!channel>", &fields);
        assert_eq!(
            message,
            json!({
                "text": "a &lt; b &amp; &lt;!channel&gt;",
                "blocks": [
                    { "type": "section", "text": { "type": "mrkdwn", "text": "a &lt; b &amp; &lt;!channel&gt;" } },
                    { "type": "section", "fields": [
                        { "type": "mrkdwn", "text": "*Run*\n1a2b" }, { "type": "mrkdwn", "text": "*Lost*\n–" },
                    ] },
                ],
            })
        );
    }

    #[test]
    fn what_slack_would_refuse_is_cut() {
        let fields: Vec<_> = (0..700).map(|n| (format!("f{n}"), "x".repeat(5000))).collect();
        let message = message(&format!("{}<", "y".repeat(2997)), &fields);
        let blocks = message["blocks"].as_array().unwrap();
        assert_eq!(blocks.len(), BLOCKS_LIMIT);
        let text = blocks[0]["text"]["text"].as_str().unwrap();
        assert!(text.ends_with("y…"), "no half of an escaped sign: {text}");
        let fields = blocks.iter().skip(1).flat_map(|block| block["fields"].as_array().unwrap());
        let longest = fields.map(|field| field["text"].as_str().unwrap().chars().count()).max();
        assert_eq!(longest, Some(FIELD_LIMIT));
        assert!(
            blocks.iter().skip(1).all(|block| block["fields"].as_array().unwrap().len() <= FIELDS_IN_BLOCK)
        );
        assert_eq!(super::message(" ", &[])["blocks"][0]["text"]["text"], "–");
    }
}

//! Telling a model of tools when its chat template cannot.
//!
//! The last message's content then ends in the list of tools and a sentence on what to do with them, laid
//! out as text-generation-inference does it. A template that reads `tools` needs none of this. The module
//! only appends: which message and whether at all is decided where conversations are rendered.

use crate::generation::Tool;
use serde_json::json;

/// What a model is told to do with tools unless a request says otherwise.
///
/// Source: text-generation-inference's `ChatRequest.tool_prompt`, word for word, a line break on each side.
const DEFAULT_TOOL_PROMPT: &str = "\nGiven the functions available, please respond with a JSON for a \
    function call with its proper arguments that best answers the given prompt. Respond in the format {name: \
    function name, parameters: dictionary of argument name and its value}.Do not use variables.\n";

/// Appends tools and tool prompt to the content of a conversation's last message.
///
/// `tool_prompt` replaces TGI's and, like it, is used as it is.
pub fn with_tools(content: &str, tools: &[Tool], tool_prompt: Option<&str>) -> String {
    let tools: Vec<serde_json::Value> = tools
        .iter()
        .map(|tool| {
            let mut function = json!({"name": tool.name, "parameters": tool.parameters});
            if let Some(description) = &tool.description {
                function["description"] = json!(description);
            }
            json!({"type": "function", "function": function})
        })
        .collect();
    let tool_prompt = tool_prompt.unwrap_or(DEFAULT_TOOL_PROMPT);
    format!(
        "{content}\n---\n{}\n{tool_prompt}",
        serde_json::Value::from(tools)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tools_and_prompt_follow_the_content() {
        let tools = [Tool {
            name: "now".to_owned(),
            description: Some("Tells the time".to_owned()),
            parameters: json!({"type": "object"}),
            strict: false,
        }];
        assert_eq!(
            with_tools("What time is it?", &tools, Some("Answer in JSON.")),
            "What time is it?\n---\n[{\"type\":\"function\",\"function\":{\"name\":\"now\",\
             \"parameters\":{\"type\":\"object\"},\"description\":\"Tells the time\"}}]\nAnswer in JSON."
        );
        let text = with_tools("", &[], None);
        assert!(
            text.starts_with("\n---\n[]\n\nGiven the functions"),
            "{text}"
        );
        assert!(text.ends_with("}.Do not use variables.\n"), "{text}");
        assert_eq!(DEFAULT_TOOL_PROMPT.matches("  ").count(), 0);
    }
}

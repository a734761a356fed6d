//! One conversation by the Rust SDK: ping, tool, resume.
//!
//! usage: turn HOST:PORT MODEL_URL
//!
//! The SDK is given a stream that is connected already, which is the one way that needs no CLI of
//! its own; it sends no token on it.
//!
//! Prints `ok` last; ends with status 1 and a reason on standard error otherwise.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use github_copilot_sdk::handler::ApproveAllHandler;
use github_copilot_sdk::session::Session;
use github_copilot_sdk::tool::ToolHandler;
use github_copilot_sdk::types::{
    MessageOptions, ProviderConfig, ResumeSessionConfig, SessionConfig, Tool, ToolInvocation,
    ToolResult,
};
use github_copilot_sdk::{Client, Error};
use tokio::net::TcpStream;

type Failure = Box<dyn std::error::Error>;

const WITHIN: Duration = Duration::from_secs(20);

struct Add;

#[async_trait]
impl ToolHandler for Add {
    async fn call(&self, invocation: ToolInvocation) -> Result<ToolResult, Error> {
        let number = |name: &str| invocation.arguments[name].as_i64().unwrap_or_default();
        Ok(ToolResult::Text(format!("sum {}", number("a") + number("b"))))
    }
}

fn add() -> Tool {
    Tool::new("add")
        .with_description("add two numbers")
        .with_parameters(serde_json::json!({
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
        }))
        .with_handler(Arc::new(Add))
}

async fn ask(session: &Session, prompt: &str, part: &str) -> Result<(), Failure> {
    let options = MessageOptions::new(prompt).with_wait_timeout(WITHIN);
    let event = session.send_and_wait(options).await?;
    let text = event
        .and_then(|event| event.data["content"].as_str().map(str::to_owned))
        .unwrap_or_default();
    if !text.contains(part) {
        return Err(format!("expected {part:?} in the answer {text:?}").into());
    }
    Ok(())
}

async fn run() -> Result<(), Failure> {
    let mut args = std::env::args().skip(1);
    let address = args.next().ok_or("no address")?;
    let model_url = args.next().ok_or("no model URL")?;
    let (reader, writer) = TcpStream::connect(address).await?.into_split();
    let client = Client::from_streams(reader, writer, std::env::current_dir()?)?;
    client.verify_protocol_version().await?;
    client.ping(Some("hello")).await?;
    let provider = || ProviderConfig::new(&model_url).with_provider_type("openai").with_api_key("none");
    let mut config = SessionConfig::default()
        .with_permission_handler(Arc::new(ApproveAllHandler))
        .with_model("gpt-4.1")
        .with_streaming(true)
        .with_tools([add()]);
    config.provider = Some(provider());
    let session = client.create_session(config).await?;
    ask(&session, "hello there", "hello there").await?;
    ask(&session, r#"[[tool add {"a": 2, "b": 3}]]"#, "sum 5").await?;
    let id = session.id().clone();
    session.disconnect().await?;
    let mut config = ResumeSessionConfig::new(id)
        .with_permission_handler(Arc::new(ApproveAllHandler))
        .with_tools([add()]);
    config.provider = Some(provider());
    config.model = Some("gpt-4.1".into());
    let again = client.resume_session(config).await?;
    ask(&again, "still there?", "user messages: 3").await?;
    again.disconnect().await?;
    client.stop().await.ok();
    Ok(())
}

#[tokio::main]
async fn main() {
    match tokio::time::timeout(4 * WITHIN, run()).await {
        Ok(Ok(())) => println!("ok"),
        Ok(Err(error)) => fail(&error.to_string()),
        Err(_) => fail("no end in time"),
    }
    std::process::exit(0);
}

fn fail(reason: &str) {
    eprintln!("{reason}");
    std::process::exit(1);
}

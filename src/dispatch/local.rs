//! The local model as the hall sees it: its engine, its tokenizer, its template, its grammars.

use std::sync::Arc;

use tokio::sync::Semaphore;

use super::Config;
use crate::engine::Engine;
use crate::generation::{Error, Grammar, Request, TokenId};
use crate::guided::{CACHED_GRAMMARS, Compiler, GrammarError, Guide};
use crate::telemetry::Metrics;
use crate::text::{ChatTemplate, Encoding, Tokenizer};

/// Everything that answering here takes.
#[derive(Debug)]
pub struct Local {
    pub(super) engine: Engine,
    pub(super) tokenizer: Tokenizer,
    pub(super) template: Option<ChatTemplate>,
    pub(super) eos: Arc<[TokenId]>,
    /// The text of the token that the tokenizer puts before every prompt, if it does so.
    pub(super) bos: Option<Arc<str>>,
    pub(super) tokenizing: Arc<Semaphore>,
    /// None when grammars are not served.
    compiler: Option<Arc<Compiler>>,
    compiling: Arc<Semaphore>,
}

/// Grammars compiled at once; the others wait, those compiled already do not.
const COMPILED_AT_ONCE: usize = 2;

/// Texts up to this many bytes are tokenized where they are; longer ones take more than 100 µs and leave
/// the async threads.
const INLINE_TEXT_BYTES: usize = 128;

/// The special token that stands before any text, as the tokenizer writes it.
fn bos(tokenizer: &Tokenizer) -> Option<Arc<str>> {
    let first = *tokenizer.encode("a", true).ok()?.ids.first()?;
    let text = tokenizer.token_text(first).ok()?;
    (tokenizer.is_special(first) && !text.is_empty()).then(|| text.into())
}

/// A prompt that the engine can take.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) prompt: Vec<TokenId>,
    pub(super) max_new_tokens: usize,
    pub(super) guide: Option<Guide>,
}

impl Local {
    /// Builds it over a running engine.
    pub fn new(
        config: &Config,
        engine: Engine,
        tokenizer: Tokenizer,
        template: Option<ChatTemplate>,
        eos: Arc<[TokenId]>,
    ) -> Self {
        let compiler = config.grammars.then(|| {
            Arc::new(Compiler::new(
                tokenizer.clone(),
                Arc::clone(&eos),
                CACHED_GRAMMARS,
            ))
        });
        let bos = bos(&tokenizer);
        Self {
            engine,
            tokenizer,
            template,
            eos,
            bos,
            tokenizing: Arc::new(Semaphore::new(config.validation_workers)),
            compiler,
            compiling: Arc::new(Semaphore::new(COMPILED_AT_ONCE)),
        }
    }

    /// Turns text into tokens, in place when it is short, else on a thread that may block.
    pub(super) async fn encode(
        &self,
        text: String,
        add_special: bool,
        metrics: &Metrics,
    ) -> Result<Encoding, Error> {
        let failed = |e: crate::text::TextError| Error::invalid(format!("tokenizer error {e}"));
        if text.len() <= INLINE_TEXT_BYTES {
            return self.tokenizer.encode(&text, add_special).map_err(failed);
        }
        let turn = Arc::clone(&self.tokenizing).acquire_owned().await;
        let tokenizer = self.tokenizer.clone();
        // The turn ends with the work, which goes on when the caller has given up: else texts nobody waits for
        // would pile up beside each other.
        let gauge = metrics.tokenizing.clone();
        let task = tokio::task::spawn_blocking(move || {
            gauge.inc();
            let encoding = tokenizer.encode(&text, add_special);
            gauge.dec();
            drop(turn);
            encoding
        });
        task.await
            .map_err(|_| Error::generation("the tokenizer panicked"))?
            .map_err(failed)
    }

    /// Compiles a grammar, on a thread that may block unless it is known already.
    async fn guide(&self, grammar: &Grammar) -> Result<Guide, Error> {
        let refused = |e: GrammarError| Error::invalid(e.to_string());
        let compiler = self
            .compiler
            .as_ref()
            .ok_or_else(|| refused(GrammarError::Unsupported))?;
        if let Some(outcome) = compiler.remembered(grammar) {
            return outcome.map_err(refused);
        }
        let turn = Arc::clone(&self.compiling).acquire_owned().await;
        let compiler = Arc::clone(compiler);
        let grammar = grammar.clone();
        // As with texts, the turn ends with the work, not with the caller's patience.
        let task = tokio::task::spawn_blocking(move || {
            let guide = compiler.compile(&grammar);
            drop(turn);
            guide
        });
        task.await
            .map_err(|_| Error::generation("the grammar's compiler panicked"))?
            .map_err(refused)
    }

    /// The prompt's tokens, how many may follow and which, after the checks that need the tokenizer.
    pub(super) async fn prepare(
        &self,
        config: &Config,
        request: &Request,
        metrics: &Metrics,
    ) -> Result<Ready, Error> {
        let Config {
            max_input_tokens,
            max_total_tokens,
            ..
        } = *config;
        let encoding = self
            .encode(request.prompt.clone(), request.add_special_tokens, metrics)
            .await?;
        let mut prompt = encoding.ids;
        if let Some(keep) = request.truncate
            && prompt.len() > keep.get()
        {
            prompt.drain(..prompt.len() - keep.get());
        }
        let input = prompt.len();
        let left = max_total_tokens.saturating_sub(input);
        let wanted = request.max_new_tokens.map_or(left, |n| n.get() as usize);
        // TGI checks the first 1,024 tokens asked for, not all of them; more than fits is cut, not refused.
        let checked = wanted.min(1024);
        if input + checked > max_total_tokens {
            return Err(Error::too_long(format!(
                "`inputs` tokens + `max_new_tokens` must be <= {max_total_tokens}. Given: {input} `inputs` tokens and {checked} `max_new_tokens`"
            )));
        }
        if input > max_input_tokens {
            return Err(Error::too_long(format!(
                "`inputs` must have less than {max_input_tokens} tokens. Given: {input}"
            )));
        }
        let guide = match &request.grammar {
            Some(grammar) => Some(self.guide(grammar).await?),
            None => None,
        };
        if input == 0 {
            return Err(Error::invalid("`inputs` cannot be empty"));
        }
        if left == 0 {
            return Err(Error::too_long(format!(
                "`inputs` tokens + `max_new_tokens` must be <= {max_total_tokens}. Given: {input} `inputs` tokens and 1 `max_new_tokens`"
            )));
        }
        Ok(Ready {
            prompt,
            max_new_tokens: wanted.min(left),
            guide,
        })
    }
}

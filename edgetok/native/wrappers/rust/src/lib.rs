//! libedgetok: runs a folder that `edgetok export --format native` wrote.
//!
//! ```no_run
//! # fn main() -> Result<(), edgetok::Error> {
//! let model = edgetok::Model::open("app", 0, false)?;
//! let mut chat = model.chat(&edgetok::Cache::default())?;
//! for piece in chat.say("Hello", None)? {
//!     print!("{}", piece?.text);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! A model stays open while one of its chats lives. What was dropped cannot be called:
//!
//! ```compile_fail,E0382
//! # fn main() -> Result<(), edgetok::Error> {
//! let mut chat = edgetok::Model::open("app", 0, false)?.chat(&Default::default())?;
//! drop(chat);
//! chat.say("Hello", None)?;
//! # Ok(())
//! # }
//! ```
mod ffi;

pub use ffi::Stats;
use std::ffi::{CStr, CString};
use std::os::raw::{c_char, c_int, c_void};
use std::path::Path;
use std::ptr::{null, null_mut};
use std::sync::{Arc, Weak};

/// What the library said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error(pub String);

impl std::fmt::Display for Error {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        to.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

pub type Result<T> = std::result::Result<T, Error>;

/// What a model is; see `edgetok_info` of edgetok.h.
#[derive(Clone, Debug)]
pub struct Info {
    pub vocab_size: i64,
    pub context_tokens: i64,
    pub layers: i64,
    pub kv_bits: i64,
    pub block_tokens: i64,
    pub weight_bytes: i64,
    pub buffer_bytes: i64,
    pub threads: i32,
    pub tokenizes: bool,
    pub chats: bool,
    pub isa: String,
    pub family: String,
    pub weights_sha256: String,
}

/// A cache: `context_tokens`, or what an evicting `policy` may take. 0 and None are the defaults,
/// of `policy` recall.
#[derive(Clone, Debug, Default)]
pub struct Cache {
    pub context_tokens: i64,
    pub budget_bytes: i64,
    pub policy: Option<String>,
}

/// How answers are sampled; the default takes the most likely token. 0 switches an option off.
#[derive(Clone, Debug, Default)]
pub struct Sampling {
    pub temperature: f64,
    pub top_p: f64,
    pub min_p: f64,
    pub repetition_penalty: f64,
    pub presence_penalty: f64,
    pub frequency_penalty: f64,
    pub top_k: i64,
    pub seed: u64,
    pub max_tokens: i64,
    pub stop: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    Going,
    Stop,
    Length,
    Context,
    Cancelled,
}

/// A token of an answer, the text that it completes, and why it is the last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    pub token: i32,
    pub text: String,
    pub finish: Finish,
}

struct ModelHandle(*mut ffi::Model);

/// The model is dropped after the chat, whoever holds this last.
struct ChatHandle {
    chat: *mut ffi::Chat,
    model: Model,
}

// A model's functions take turns in the library; a chat's take `&mut Chat`, but for cancelling.
unsafe impl Send for ModelHandle {}
unsafe impl Sync for ModelHandle {}
unsafe impl Send for ChatHandle {}
unsafe impl Sync for ChatHandle {}

impl Drop for ModelHandle {
    fn drop(&mut self) {
        unsafe { ffi::edgetok_close(self.0) }
    }
}

impl Drop for ChatHandle {
    fn drop(&mut self) {
        unsafe { ffi::edgetok_chat_free(self.chat) }
    }
}

/// A model; clones are the same model.
#[derive(Clone)]
pub struct Model(Arc<ModelHandle>);

impl Model {
    /// Opens a folder. `threads`: 0 for one a core; `verify` compares the weights with their sha256.
    pub fn open(folder: impl AsRef<Path>, threads: i32, verify: bool) -> Result<Model> {
        let folder = folder.as_ref();
        let folder = folder.to_str().ok_or_else(|| Error(format!("{folder:?}: is not UTF-8")))?;
        let folder = plain(folder)?;
        let handle = told(
            |error| unsafe { ffi::edgetok_open(folder.as_ptr(), threads, verify as c_int, error) },
            |handle| !handle.is_null(),
        )?;
        Ok(Model(Arc::new(ModelHandle(handle))))
    }

    pub fn info(&self) -> Info {
        let mut found = std::mem::MaybeUninit::uninit();
        let (i, text) = unsafe {
            ffi::edgetok_describe(self.0 .0, found.as_mut_ptr());
            (found.assume_init(), |at| CStr::from_ptr(at).to_string_lossy().into_owned())
        };
        Info {
            vocab_size: i.vocab_size,
            context_tokens: i.context_tokens,
            layers: i.layers,
            kv_bits: i.kv_bits,
            block_tokens: i.block_tokens,
            weight_bytes: i.weight_bytes,
            buffer_bytes: i.buffer_bytes,
            threads: i.threads,
            tokenizes: i.tokenizes != 0,
            chats: i.chats != 0,
            isa: text(i.isa),
            family: text(i.family),
            weights_sha256: text(i.weights_sha256.as_ptr()),
        }
    }

    /// A text's tokens; `special` adds what belongs around one, such as `<s>`.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<i32>> {
        let (at, special) = (text.as_ptr().cast(), special as c_int);
        let mut ids = vec![0; 2 * text.len() + 16];
        loop {
            let (to, room) = (ids.as_mut_ptr(), ids.len());
            let count = told(
                |error| unsafe {
                    ffi::edgetok_encode(self.0 .0, at, text.len(), special, to, room, error)
                },
                |count| *count >= 0,
            )?;
            ids.resize(count as usize, 0);
            if ids.len() <= room {
                return Ok(ids);
            }
        }
    }

    /// The bytes that a token stands for; None for no such token.
    pub fn piece(&self, token: i32) -> Option<&[u8]> {
        let mut bytes = 0;
        let at = unsafe { ffi::edgetok_piece(self.0 .0, token, &mut bytes) };
        (!at.is_null()).then(|| unsafe { std::slice::from_raw_parts(at.cast(), bytes) })
    }

    /// A conversation with memory of its own.
    pub fn chat(&self, cache: &Cache) -> Result<Chat> {
        let policy = cache.policy.as_deref().map(plain).transpose()?;
        let given = ffi::Cache {
            context_tokens: cache.context_tokens,
            budget_bytes: cache.budget_bytes,
            policy: policy.as_ref().map_or(null(), |text| text.as_ptr()),
        };
        let handle = told(
            |error| unsafe { ffi::edgetok_chat_new(self.0 .0, &given, error) },
            |handle| !handle.is_null(),
        )?;
        Ok(Chat(Arc::new(ChatHandle { chat: handle, model: self.clone() })))
    }
}

/// A conversation.
pub struct Chat(Arc<ChatHandle>);

/// Ends a chat's prefill or answer, from any thread; does nothing once the chat is dropped.
#[derive(Clone)]
pub struct Canceller(Weak<ChatHandle>);

impl Canceller {
    pub fn cancel(&self) {
        if let Some(handle) = self.0.upgrade() {
            unsafe { ffi::edgetok_cancel(handle.chat) }
        }
    }
}

impl Chat {
    pub fn canceller(&self) -> Canceller {
        Canceller(Arc::downgrade(&self.0))
    }

    /// Sets how the answers after the next `say` or `prefill` are sampled.
    pub fn sample(&mut self, s: &Sampling) -> Result<()> {
        let stop = s.stop.iter().map(|text| plain(text)).collect::<Result<Vec<_>>>()?;
        let texts: Vec<_> = stop.iter().map(|text| text.as_ptr()).collect();
        let given = ffi::Sampling {
            temperature: s.temperature,
            top_p: s.top_p,
            min_p: s.min_p,
            repetition_penalty: s.repetition_penalty,
            presence_penalty: s.presence_penalty,
            frequency_penalty: s.frequency_penalty,
            top_k: s.top_k,
            seed: s.seed,
            max_tokens: s.max_tokens,
            stop: texts.as_ptr(),
            stops: texts.len(),
        };
        self.done(|chat, error| unsafe { ffi::edgetok_sample(chat, &given, error) })
    }

    /// Says something by the chat template. `system` belongs to the first turn.
    pub fn say(&mut self, text: &str, system: Option<&str>) -> Result<Answer<'_>> {
        let (text, system) = (plain(text)?, system.map(plain).transpose()?);
        let system = system.as_ref().map_or(null(), |text| text.as_ptr());
        self.done(|chat, error| unsafe { ffi::edgetok_say(chat, system, text.as_ptr(), error) })?;
        Ok(Answer(self))
    }

    /// Makes `ids` the chat's tokens, keeping what the cache holds of them.
    pub fn prefill(&mut self, ids: &[i32]) -> Result<Answer<'_>> {
        self.done(|chat, e| unsafe { ffi::edgetok_prefill(chat, ids.as_ptr(), ids.len(), e) })?;
        Ok(Answer(self))
    }

    /// The next token of the answer; None when it is over.
    pub fn next(&mut self) -> Result<Option<Piece>> {
        let mut o = ffi::Output { token: 0, finish: 0, text: null(), bytes: 0 };
        let more = told(
            |error| unsafe { ffi::edgetok_next(self.0.chat, &mut o, error) },
            |state| *state >= 0,
        )?;
        if more == 0 {
            return Ok(None);
        }
        let text = unsafe { std::slice::from_raw_parts(o.text.cast(), o.bytes) };
        let known = [Finish::Going, Finish::Stop, Finish::Length, Finish::Context];
        let finish = known.get(o.finish as usize).copied().unwrap_or(Finish::Cancelled);
        let text = String::from_utf8_lossy(text).into_owned();
        Ok(Some(Piece { token: o.token, text, finish }))
    }

    /// Goes back to the first tokens, or fewer if some were evicted; returns how many.
    pub fn truncate(&mut self, tokens: i64) -> Result<i64> {
        let chat = self.0.chat;
        told(|error| unsafe { ffi::edgetok_truncate(chat, tokens, error) }, |left| *left >= 0)
    }

    /// Ids of the chat's tokens, evicted ones included.
    pub fn tokens(&self) -> Vec<i32> {
        let tokens = |at, capacity| unsafe { ffi::edgetok_tokens(self.0.chat, at, capacity) };
        let mut ids = vec![0; tokens(null_mut(), 0) as usize];
        tokens(ids.as_mut_ptr(), ids.len());
        ids
    }

    /// Of the last token computed; None before the first.
    pub fn logits(&self) -> Option<&[f32]> {
        let (at, size) =
            (unsafe { ffi::edgetok_logits(self.0.chat) }, self.0.model.info().vocab_size);
        (!at.is_null()).then(|| unsafe { std::slice::from_raw_parts(at, size as usize) })
    }

    pub fn stats(&self) -> Stats {
        let mut found = Stats::default();
        unsafe { ffi::edgetok_stats(self.0.chat, &mut found) };
        found
    }

    /// The cache, for `restore` or for edgetok in Python; keep `tokens` with it.
    pub fn save(&mut self) -> Result<Vec<u8>> {
        self.saved(|chat, at, capacity, error| unsafe {
            ffi::edgetok_save(chat, at, capacity, error)
        })
    }

    /// The content of a session file, which `edgetok chat --session` opens.
    pub fn session(&mut self) -> Result<Vec<u8>> {
        self.saved(|chat, at, capacity, error| unsafe {
            ffi::edgetok_session_save(chat, at, capacity, error)
        })
    }

    fn saved(
        &mut self,
        save: impl Fn(*mut ffi::Chat, *mut c_void, usize, *mut c_char) -> i64,
    ) -> Result<Vec<u8>> {
        let chat = self.0.chat;
        let save = |at: *mut u8, capacity| {
            told(
                |error| save(chat, at.cast(), capacity, error),
                |bytes| *bytes >= 0,
            )
        };
        let mut made = vec![0; save(null_mut(), 0)? as usize];
        save(made.as_mut_ptr(), made.len())?;
        Ok(made)
    }

    /// Goes on with the conversation of a session file, which Python may have written.
    pub fn load_session(&mut self, file: &[u8]) -> Result<()> {
        let at = file.as_ptr().cast();
        self.done(|chat, error| unsafe {
            ffi::edgetok_session_load(chat, at, file.len(), error)
        })
    }

    /// Takes over a cache that was computed from `ids`.
    pub fn restore(&mut self, block: &[u8], ids: &[i32]) -> Result<()> {
        let at = block.as_ptr().cast();
        self.done(|chat, error| unsafe {
            ffi::edgetok_restore(chat, at, block.len(), ids.as_ptr(), ids.len(), error)
        })
    }

    fn done(&mut self, call: impl FnOnce(*mut ffi::Chat, *mut c_char) -> c_int) -> Result<()> {
        told(|error| call(self.0.chat, error), |state| *state >= 0).map(|_| ())
    }
}

/// An answer: its tokens, one after the other.
pub struct Answer<'a>(&'a mut Chat);

impl Iterator for Answer<'_> {
    type Item = Result<Piece>;

    fn next(&mut self) -> Option<Result<Piece>> {
        self.0.next().transpose()
    }
}

/// Calls with room for an error, and takes its text if the result is not good.
fn told<T>(call: impl FnOnce(*mut c_char) -> T, good: impl FnOnce(&T) -> bool) -> Result<T> {
    let mut error = [0 as c_char; 256];
    let result = call(error.as_mut_ptr());
    if good(&result) {
        return Ok(result);
    }
    Err(Error(unsafe { CStr::from_ptr(error.as_ptr()) }.to_string_lossy().into_owned()))
}

fn plain(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| Error("a text holds a NUL character; remove it".into()))
}

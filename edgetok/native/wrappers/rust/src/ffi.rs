//! The declarations of edgetok.h.
use std::os::raw::{c_char, c_int, c_void};

#[repr(C)]
pub struct Model {
    _private: [u8; 0],
}

#[repr(C)]
pub struct Chat {
    _private: [u8; 0],
}

#[repr(C)]
pub struct Info {
    pub vocab_size: i64,
    pub context_tokens: i64,
    pub layers: i64,
    pub kv_bits: i64,
    pub block_tokens: i64,
    pub weight_bytes: i64,
    pub buffer_bytes: i64,
    pub threads: c_int,
    pub tokenizes: c_int,
    pub chats: c_int,
    pub isa: *const c_char,
    pub family: *const c_char,
    pub weights_sha256: [c_char; 65],
}

#[repr(C)]
pub struct Cache {
    pub context_tokens: i64,
    pub budget_bytes: i64,
    pub policy: *const c_char,
}

#[repr(C)]
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
    pub stop: *const *const c_char,
    pub stops: usize,
}

#[repr(C)]
pub struct Output {
    pub token: i32,
    pub finish: c_int,
    pub text: *const c_char,
    pub bytes: usize,
}

/// What a chat holds and took.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stats {
    /// In the conversation, evicted ones included.
    pub tokens: i64,
    /// Of the next token.
    pub position: i64,
    /// Tokens that a head can hold, on average.
    pub slots: i64,
    /// Of keys, values and lists when all slots are used.
    pub cache_bytes: i64,
    pub prompt_tokens: i64,
    pub cached_tokens: i64,
    pub answer_tokens: i64,
    pub prefill_s: f64,
    pub decode_s: f64,
}

extern "C" {
    pub fn edgetok_open(
        folder: *const c_char,
        threads: c_int,
        verify: c_int,
        error: *mut c_char,
    ) -> *mut Model;
    pub fn edgetok_close(model: *mut Model);
    pub fn edgetok_describe(model: *const Model, info: *mut Info);
    pub fn edgetok_chat_new(
        model: *mut Model,
        cache: *const Cache,
        error: *mut c_char,
    ) -> *mut Chat;
    pub fn edgetok_chat_free(chat: *mut Chat);
    pub fn edgetok_encode(
        model: *const Model,
        text: *const c_char,
        bytes: usize,
        special: c_int,
        ids: *mut i32,
        capacity: usize,
        error: *mut c_char,
    ) -> i64;
    pub fn edgetok_piece(model: *const Model, token: i32, bytes: *mut usize) -> *const c_char;
    pub fn edgetok_sample(chat: *mut Chat, sampling: *const Sampling, error: *mut c_char) -> c_int;
    pub fn edgetok_prefill(
        chat: *mut Chat,
        ids: *const i32,
        count: usize,
        error: *mut c_char,
    ) -> c_int;
    pub fn edgetok_say(
        chat: *mut Chat,
        system: *const c_char,
        text: *const c_char,
        error: *mut c_char,
    ) -> c_int;
    pub fn edgetok_next(chat: *mut Chat, output: *mut Output, error: *mut c_char) -> c_int;
    pub fn edgetok_cancel(chat: *mut Chat);
    pub fn edgetok_truncate(chat: *mut Chat, tokens: i64, error: *mut c_char) -> i64;
    pub fn edgetok_tokens(chat: *const Chat, ids: *mut i32, capacity: usize) -> i64;
    pub fn edgetok_logits(chat: *const Chat) -> *const f32;
    pub fn edgetok_stats(chat: *const Chat, stats: *mut Stats);
    pub fn edgetok_save(
        chat: *mut Chat,
        block: *mut c_void,
        capacity: usize,
        error: *mut c_char,
    ) -> i64;
    pub fn edgetok_session_save(
        chat: *mut Chat,
        file: *mut c_void,
        capacity: usize,
        error: *mut c_char,
    ) -> i64;
    pub fn edgetok_session_load(
        chat: *mut Chat,
        file: *const c_void,
        bytes: usize,
        error: *mut c_char,
    ) -> c_int;
    pub fn edgetok_restore(
        chat: *mut Chat,
        block: *const c_void,
        bytes: usize,
        ids: *const i32,
        count: usize,
        error: *mut c_char,
    ) -> c_int;
}

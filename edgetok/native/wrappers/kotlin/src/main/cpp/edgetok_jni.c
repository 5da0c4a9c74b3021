/* libedgetok for Android and the JVM: the functions that Edgetok.kt declares. Handles are pointers as
   long, texts are UTF-8 bytes without a 0; an error is thrown as edgetok.EdgetokException. */
#include <edgetok.h>
#include <jni.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define METHOD(type, name) JNIEXPORT type JNICALL Java_edgetok_Native_##name
#define MODEL ((edgetok_model *)(intptr_t)model)
#define CHAT ((edgetok_chat *)(intptr_t)chat)
#define UNUSED (void)env, (void)type

static jbyteArray bytes_of(JNIEnv *env, const void *data, size_t bytes) {
    jbyteArray made = (*env)->NewByteArray(env, (jsize)bytes);
    if (made) (*env)->SetByteArrayRegion(env, made, 0, (jsize)bytes, data);
    return made;
}

static void fail(JNIEnv *env, const char *error) {
    jclass kind = (*env)->FindClass(env, "edgetok/EdgetokException");
    jmethodID made = kind ? (*env)->GetMethodID(env, kind, "<init>", "([B)V") : NULL;
    jbyteArray said = made ? bytes_of(env, error, strlen(error)) : NULL;
    jobject problem = said ? (*env)->NewObject(env, kind, made, said) : NULL;
    if (problem) (*env)->Throw(env, problem);
}

/* A copy that ends with 0, which the caller frees; NULL for null. */
static char *text_of(JNIEnv *env, jbyteArray bytes) {
    if (!bytes) return NULL;
    jsize size = (*env)->GetArrayLength(env, bytes);
    char *text = malloc((size_t)size + 1);
    if (!text) return fail(env, "no memory for a text"), NULL;
    (*env)->GetByteArrayRegion(env, bytes, 0, size, (jbyte *)text);
    text[size] = 0;
    return text;
}

METHOD(jlong, open)(JNIEnv *env, jclass type, jbyteArray folder, jint threads, jboolean verify) {
    char error[EDGETOK_ERROR_BYTES] = "", *path = text_of(env, folder);
    (void)type;
    if (!path) return 0;
    edgetok_model *model = edgetok_open(path, threads, verify, error);
    free(path);
    if (!model) fail(env, error);
    return (jlong)(intptr_t)model;
}

METHOD(void, close)(JNIEnv *env, jclass type, jlong model) {
    UNUSED;
    edgetok_close(MODEL);
}

/* Fills ten numbers; returns the three texts, a line each. */
METHOD(jbyteArray, describe)(JNIEnv *env, jclass type, jlong model, jlongArray numbers) {
    edgetok_info i;
    char texts[512];
    (void)type;
    edgetok_describe(MODEL, &i);
    jlong values[10] = {i.vocab_size, i.context_tokens, i.layers, i.kv_bits, i.block_tokens,
                        i.weight_bytes, i.buffer_bytes, i.threads, i.tokenizes, i.chats};
    (*env)->SetLongArrayRegion(env, numbers, 0, 10, values);
    snprintf(texts, sizeof texts, "%s\n%s\n%s", i.isa, i.family, i.weights_sha256);
    return bytes_of(env, texts, strlen(texts));
}

METHOD(jintArray, encode)(JNIEnv *env, jclass type, jlong model, jbyteArray text, jboolean special) {
    char error[EDGETOK_ERROR_BYTES] = "";
    (void)type;
    size_t bytes = (size_t)(*env)->GetArrayLength(env, text), most = 2 * bytes + 16;
    int32_t *ids = malloc(4 * most);
    char *data = text_of(env, text);
    jintArray made = NULL;
    int64_t count = ids && data ? edgetok_encode(MODEL, data, bytes, special, ids, most, error) : 0;
    if (count > (int64_t)most) { /* few texts have more tokens */
        free(ids);
        if ((ids = malloc(4 * (size_t)count)))
            count = edgetok_encode(MODEL, data, bytes, special, ids, (size_t)count, error);
    }
    if (data && !ids) fail(env, "no memory for the tokens");
    else if (count < 0) fail(env, error);
    else if (data && (made = (*env)->NewIntArray(env, (jsize)count)))
        (*env)->SetIntArrayRegion(env, made, 0, (jsize)count, ids);
    free(data);
    free(ids);
    return made;
}

METHOD(jbyteArray, piece)(JNIEnv *env, jclass type, jlong model, jint token) {
    size_t bytes;
    (void)type;
    const char *at = edgetok_piece(MODEL, token, &bytes);
    return at ? bytes_of(env, at, bytes) : NULL;
}

METHOD(jlong, chatNew)(JNIEnv *env, jclass type, jlong model, jlong context, jlong budget, jbyteArray policy) {
    char error[EDGETOK_ERROR_BYTES] = "", *name = text_of(env, policy);
    (void)type;
    edgetok_cache cache = {.context_tokens = context, .budget_bytes = budget, .policy = name};
    edgetok_chat *chat = edgetok_chat_new(MODEL, &cache, error);
    free(name);
    if (!chat) fail(env, error);
    return (jlong)(intptr_t)chat;
}

METHOD(void, chatFree)(JNIEnv *env, jclass type, jlong chat) {
    UNUSED;
    edgetok_chat_free(CHAT);
}

METHOD(void, sample)(JNIEnv *env, jclass type, jlong chat, jdoubleArray reals, jlongArray whole, jobjectArray stop) {
    char error[EDGETOK_ERROR_BYTES] = "", *texts[64] = {NULL};
    jdouble r[6];
    jlong n[3];
    (void)type;
    (*env)->GetDoubleArrayRegion(env, reals, 0, 6, r);
    (*env)->GetLongArrayRegion(env, whole, 0, 3, n);
    jsize stops = (*env)->GetArrayLength(env, stop);
    if (stops > 64) {
        fail(env, "more than 64 stop texts");
        return;
    }
    for (jsize i = 0; i < stops; i++) {
        jobject text = (*env)->GetObjectArrayElement(env, stop, i);
        texts[i] = text_of(env, text);
        (*env)->DeleteLocalRef(env, text);
    }
    edgetok_sampling s = {.temperature = r[0], .top_p = r[1], .min_p = r[2], .repetition_penalty = r[3],
        .presence_penalty = r[4], .frequency_penalty = r[5], .top_k = n[0], .seed = (uint64_t)n[1],
        .max_tokens = n[2], .stop = (const char *const *)texts, .stops = (size_t)stops};
    if (!(*env)->ExceptionCheck(env) && edgetok_sample(CHAT, &s, error) < 0) fail(env, error);
    for (jsize i = 0; i < stops; i++) free(texts[i]);
}

METHOD(void, prefill)(JNIEnv *env, jclass type, jlong chat, jintArray ids) {
    char error[EDGETOK_ERROR_BYTES] = "";
    (void)type;
    jint *at = (*env)->GetIntArrayElements(env, ids, NULL);
    if (!at) return;
    int state = edgetok_prefill(CHAT, (const int32_t *)at, (size_t)(*env)->GetArrayLength(env, ids), error);
    (*env)->ReleaseIntArrayElements(env, ids, at, JNI_ABORT);
    if (state < 0) fail(env, error);
}

METHOD(void, say)(JNIEnv *env, jclass type, jlong chat, jbyteArray text, jbyteArray system) {
    char error[EDGETOK_ERROR_BYTES] = "", *said = text_of(env, text), *told = text_of(env, system);
    (void)type;
    if (!(*env)->ExceptionCheck(env) && edgetok_say(CHAT, told, said, error) < 0) fail(env, error);
    free(said);
    free(told);
}

/* The text, with the token and why it is the last in `numbers`; null when the answer is over. */
METHOD(jbyteArray, next)(JNIEnv *env, jclass type, jlong chat, jintArray numbers) {
    char error[EDGETOK_ERROR_BYTES] = "";
    edgetok_output output;
    (void)type;
    int state = edgetok_next(CHAT, &output, error);
    if (state < 0) fail(env, error);
    if (state <= 0) return NULL;
    (*env)->SetIntArrayRegion(env, numbers, 0, 2, (jint[]){output.token, output.finish});
    return bytes_of(env, output.text, output.bytes);
}

METHOD(void, cancel)(JNIEnv *env, jclass type, jlong chat) {
    UNUSED;
    edgetok_cancel(CHAT);
}

METHOD(jlong, truncate)(JNIEnv *env, jclass type, jlong chat, jlong tokens) {
    char error[EDGETOK_ERROR_BYTES] = "";
    (void)type;
    int64_t left = edgetok_truncate(CHAT, tokens, error);
    if (left < 0) fail(env, error);
    return left;
}

METHOD(jintArray, tokens)(JNIEnv *env, jclass type, jlong chat) {
    (void)type;
    jsize count = (jsize)edgetok_tokens(CHAT, NULL, 0);
    jintArray made = (*env)->NewIntArray(env, count);
    jint *at = made ? (*env)->GetIntArrayElements(env, made, NULL) : NULL;
    if (!at) return NULL;
    edgetok_tokens(CHAT, (int32_t *)at, (size_t)count);
    (*env)->ReleaseIntArrayElements(env, made, at, 0);
    return made;
}

METHOD(jfloatArray, logits)(JNIEnv *env, jclass type, jlong chat, jint size) {
    (void)type;
    const float *at = edgetok_logits(CHAT);
    jfloatArray made = at ? (*env)->NewFloatArray(env, size) : NULL;
    if (made) (*env)->SetFloatArrayRegion(env, made, 0, size, at);
    return made;
}

METHOD(jdoubleArray, stats)(JNIEnv *env, jclass type, jlong chat) {
    edgetok_stats_t s;
    (void)type;
    edgetok_stats(CHAT, &s);
    jdouble values[9] = {(double)s.tokens, (double)s.position, (double)s.slots, (double)s.cache_bytes,
        (double)s.prompt_tokens, (double)s.cached_tokens, (double)s.answer_tokens, s.prefill_s, s.decode_s};
    jdoubleArray made = (*env)->NewDoubleArray(env, 9);
    if (made) (*env)->SetDoubleArrayRegion(env, made, 0, 9, values);
    return made;
}

static jbyteArray saved(JNIEnv *env, jlong chat, int64_t (*save)(edgetok_chat *, void *, size_t, char *)) {
    char error[EDGETOK_ERROR_BYTES] = "";
    int64_t size = save(CHAT, NULL, 0, error);
    jbyteArray made = size < 0 || size > INT32_MAX ? NULL : (*env)->NewByteArray(env, (jsize)size);
    if (size < 0) fail(env, error);
    if (size > INT32_MAX) fail(env, "the cache has more than 2 GB, which no ByteArray holds");
    jbyte *at = made ? (*env)->GetByteArrayElements(env, made, NULL) : NULL;
    if (!at) return NULL;
    if (save(CHAT, at, (size_t)size, error) < 0) fail(env, error);
    (*env)->ReleaseByteArrayElements(env, made, at, 0);
    return made;
}

METHOD(jbyteArray, save)(JNIEnv *env, jclass type, jlong chat) {
    (void)type;
    return saved(env, chat, edgetok_save);
}

METHOD(jbyteArray, session)(JNIEnv *env, jclass type, jlong chat) {
    (void)type;
    return saved(env, chat, edgetok_session_save);
}

METHOD(void, loadSession)(JNIEnv *env, jclass type, jlong chat, jbyteArray file) {
    char error[EDGETOK_ERROR_BYTES] = "";
    (void)type;
    jbyte *data = (*env)->GetByteArrayElements(env, file, NULL);
    if (!data) return;
    int state = edgetok_session_load(CHAT, data, (size_t)(*env)->GetArrayLength(env, file), error);
    (*env)->ReleaseByteArrayElements(env, file, data, JNI_ABORT);
    if (state < 0) fail(env, error);
}

METHOD(void, restore)(JNIEnv *env, jclass type, jlong chat, jbyteArray block, jintArray ids) {
    char error[EDGETOK_ERROR_BYTES] = "";
    (void)type;
    jbyte *data = (*env)->GetByteArrayElements(env, block, NULL);
    jint *at = data ? (*env)->GetIntArrayElements(env, ids, NULL) : NULL;
    int state = at ? edgetok_restore(CHAT, data, (size_t)(*env)->GetArrayLength(env, block), (int32_t *)at,
                                     (size_t)(*env)->GetArrayLength(env, ids), error) : 0;
    if (at) (*env)->ReleaseIntArrayElements(env, ids, at, JNI_ABORT);
    if (data) (*env)->ReleaseByteArrayElements(env, block, data, JNI_ABORT);
    if (state < 0) fail(env, error);
}

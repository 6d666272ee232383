/* edgeattn_kit.h: classify images with the model of a kit.
 *
 * A C interface to a C++ library, for C, C++ (see edgeattn_kit.hpp), Kotlin, Swift, Rust and others.
 *
 * Ownership.  A handle that a function stores through `out` belongs to the caller, who gives it back once with
 *   eak_close or eak_image_free; both accept NULL. On an error the handle stored is NULL. Pointers to text and
 *   pixels that functions return belong to the handle and live as long as it does. Nothing else is to be freed.
 * Errors.  No exception leaves the library. A function that can fail returns an eak_status; eak_last_error() then
 *   says in one English sentence what is wrong, what was got, and how to fix it. A function that failed changed
 *   nothing that the caller sees, except that eak_classify may have written some of its outputs.
 * Threads.  Every function may be called on any thread. An eak_classifier does one thing at a time: calls that use
 *   one wait for each other. Open one for each thread to work in parallel. An eak_image never changes, so threads
 *   may share it. Closing a handle while another thread uses it is an error that cannot be detected.
 * Text is UTF-8 and ends with a zero byte. File names are passed to the system as they are.
 */
#ifndef EDGEATTN_KIT_H
#define EDGEATTN_KIT_H

#include <stddef.h>
#include <stdint.h>

#if defined(EAK_BUILDING) && defined(__GNUC__)
#define EAK_API __attribute__((visibility("default")))
#else
#define EAK_API
#endif

#ifdef __cplusplus
extern "C" {
#define EAK_NOEXCEPT noexcept
#else
#define EAK_NOEXCEPT
#endif

/* Raised when a function or struct changes in a way that old programs cannot use. */
#define EAK_ABI_VERSION 1

/* Limits, so that hostile files cannot fill the memory. */
#define EAK_MAX_IMAGE_PIXELS 40000000   /* width times height, before and after resizing */
#define EAK_MIN_IMAGE_SIDE 8            /* pixels */
#define EAK_MAX_IMAGE_BYTES 268435456   /* an image file or buffer */
#define EAK_MAX_MODEL_BYTES 1073741824  /* a model file; a kit's JSON files are limited to 16 MiB */

/* The command-line program ends with the same numbers. */
typedef enum eak_status {
    EAK_OK = 0,
    EAK_ERR_INTERNAL = 1,      /* a mistake in the library */
    EAK_ERR_ARGUMENT = 2,      /* the call itself: NULL, a wrong size, an option out of range */
    EAK_ERR_MODEL = 3,         /* the model folder: missing, of another version, changed, or not a model */
    EAK_ERR_IMAGE = 4,         /* an image: missing, damaged, too large, or of a kind that is not supported */
    EAK_ERR_RUNTIME = 5,       /* OpenVINO does not start or does not run the model */
    EAK_ERR_OUT_OF_MEMORY = 6,
    EAK_ERR_SELF_TEST = 7      /* this machine computes something else than the kit's expected outputs */
} eak_status;

typedef struct eak_classifier eak_classifier;
typedef struct eak_image eak_image;

/* Fill with eak_options_init, then change. struct_size lets later versions add members at the end. */
typedef struct eak_options {
    size_t struct_size;
    int32_t threads;       /* inference threads, 1 to 256; default 1 */
    const char *cache_dir; /* folder for the model as compiled for this processor: the next start takes a fifth of
                              the time. Made if absent; must belong to a user you trust. NULL (default): none. */
} eak_options;

typedef struct eak_model_info {
    size_t struct_size;       /* set by the caller to sizeof(eak_model_info) */
    const char *name;
    const char *runtime;      /* such as "OpenVINO 2026.4.1-..." */
    size_t class_count;
    int32_t input_size;       /* side in pixels of the square that the model sees */
    int32_t threads;
    float min_confidence;     /* below this probability, an answer is "not sure" */
    int32_t from_cache;       /* 1: the compiled model came from cache_dir */
} eak_model_info;

typedef struct eak_prediction {
    int32_t class_index;
    float logit;
    float probability;        /* softmax over all classes */
} eak_prediction;

typedef struct eak_self_test_result {
    size_t struct_size;       /* set by the caller */
    int32_t images;           /* compared */
    int32_t same_pixels;      /* of these: decoding and resizing gave the expected bytes */
    int32_t same_top1;        /* of these: same first class as the reference */
    int32_t correct;          /* of these: first class is the true one; -1: no photograph's class is known */
    float max_logit_difference;
    float tolerance;          /* largest difference that passes */
} eak_self_test_result;

typedef struct eak_bench_result {
    size_t struct_size;       /* set by the caller */
    int32_t runs;
    double engine_p50_ms, engine_p90_ms;   /* inference alone, input in memory */
    double frame_p50_ms, frame_p90_ms;     /* decoded image to predictions: resize, normalize, infer, sort */
    double overhead_p50;      /* median over pairs of frame / engine - 1 */
} eak_bench_result;

EAK_API uint32_t eak_abi_version(void) EAK_NOEXCEPT;
/* What went wrong in this thread's last failed call; "" if none did. Valid until this thread's next failed call. */
EAK_API const char *eak_last_error(void) EAK_NOEXCEPT;
/* Short name of a status, such as "model"; "unknown" for numbers that are none. */
EAK_API const char *eak_status_name(eak_status status) EAK_NOEXCEPT;

EAK_API void eak_options_init(eak_options *options) EAK_NOEXCEPT;

/* Check the model folder of a kit and load its model. `options` may be NULL for the defaults.
 * Every file is checked against its SHA-256 before it is used. */
EAK_API eak_status eak_open(const char *model_dir, const eak_options *options, eak_classifier **out) EAK_NOEXCEPT;
EAK_API void eak_close(eak_classifier *classifier) EAK_NOEXCEPT;
EAK_API eak_status eak_get_info(const eak_classifier *classifier, eak_model_info *info) EAK_NOEXCEPT;
/* NULL if there is no such class. */
EAK_API const char *eak_class_name(const eak_classifier *classifier, size_t class_index) EAK_NOEXCEPT;

/* Decode a JPEG, PNG or PPM (P6) file into upright 8-bit RGB. */
EAK_API eak_status eak_image_read(const char *path, eak_image **out) EAK_NOEXCEPT;
EAK_API eak_status eak_image_decode(const uint8_t *data, size_t size_bytes, eak_image **out) EAK_NOEXCEPT;
EAK_API void eak_image_free(eak_image *image) EAK_NOEXCEPT;
EAK_API int32_t eak_image_width(const eak_image *image) EAK_NOEXCEPT;
EAK_API int32_t eak_image_height(const eak_image *image) EAK_NOEXCEPT;
/* Rows from top to bottom of width * 3 bytes, RGB, without gaps. */
EAK_API const uint8_t *eak_image_pixels(const eak_image *image) EAK_NOEXCEPT;

/* Classify 8-bit RGB pixels, such as a camera's frame.
 * stride_bytes: from one row to the next, at least 3 * width.
 * predictions: receives the `capacity` likeliest classes, likeliest first (of equal ones, the lower index first).
 * count: receives how many were written: min(capacity, classes). May be NULL.
 * logits: receives class_count floats, in the order of the classes. May be NULL. */
EAK_API eak_status eak_classify(eak_classifier *classifier, const uint8_t *rgb, int32_t width, int32_t height,
                                size_t stride_bytes, eak_prediction *predictions, size_t capacity, size_t *count,
                                float *logits) EAK_NOEXCEPT;

/* The pixels that the model sees: input_size * input_size * 3 bytes, resized and cropped. */
EAK_API eak_status eak_preprocess(eak_classifier *classifier, const uint8_t *rgb, int32_t width, int32_t height,
                                  size_t stride_bytes, uint8_t *pixels, size_t size_bytes) EAK_NOEXCEPT;

/* Compare with the kit's own photographs and expected outputs. EAK_ERR_SELF_TEST if they differ; `result` is
 * filled in then, too. */
EAK_API eak_status eak_self_test(eak_classifier *classifier, eak_self_test_result *result) EAK_NOEXCEPT;

/* Time inference alone and whole frames in alternation, `runs` times each (1 to 1000000), after warming up. */
EAK_API eak_status eak_bench(eak_classifier *classifier, const uint8_t *rgb, int32_t width, int32_t height,
                             size_t stride_bytes, int32_t runs, eak_bench_result *result) EAK_NOEXCEPT;

/* SHA-256 in lower-case hexadecimal: 64 characters and a zero byte. */
EAK_API eak_status eak_sha256(const uint8_t *data, size_t size_bytes, char text[65]) EAK_NOEXCEPT;

#ifdef __cplusplus
}
#endif

#endif

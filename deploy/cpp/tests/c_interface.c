/* The C interface as a C program sees it: a photograph of the kit, from its file to its class, and wrong calls. */
#include "edgeattn_kit.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition)                                                                            \
    do {                                                                                            \
        if (!(condition)) {                                                                         \
            fprintf(stderr, "%s:%d: %s is not so; last error: %s\n", __FILE__, __LINE__, #condition, \
                    eak_last_error());                                                              \
            exit(1);                                                                                \
        }                                                                                           \
    } while (0)

int main(int argc, char **argv) {
    CHECK(argc == 2);
    CHECK(eak_abi_version() == EAK_ABI_VERSION);
    CHECK(strcmp(eak_status_name(EAK_ERR_IMAGE), "image") == 0);
    CHECK(strcmp(eak_status_name((eak_status)99), "unknown") == 0);
    char hash[65];
    CHECK(eak_sha256((const uint8_t *)"abc", 3, hash) == EAK_OK);
    CHECK(strcmp(hash, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad") == 0);
    CHECK(eak_sha256(NULL, 0, hash) == EAK_OK);
    CHECK(strcmp(hash, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855") == 0);

    eak_classifier *classifier = (eak_classifier *)&classifier;
    CHECK(eak_open(NULL, NULL, &classifier) == EAK_ERR_ARGUMENT && classifier == NULL);
    CHECK(eak_open("no-such-folder", NULL, &classifier) == EAK_ERR_MODEL && classifier == NULL);
    CHECK(strstr(eak_last_error(), "no-such-folder") != NULL);
    eak_options options;
    eak_options_init(&options);
    options.threads = 0;
    CHECK(eak_open(argv[1], &options, &classifier) == EAK_ERR_ARGUMENT);
    options.threads = 2;
    options.struct_size = 3;
    CHECK(eak_open(argv[1], &options, &classifier) == EAK_ERR_ARGUMENT);
    options.struct_size = sizeof options;
    CHECK(eak_open(argv[1], &options, &classifier) == EAK_OK && classifier != NULL);

    eak_model_info info;
    memset(&info, 0, sizeof info);
    CHECK(eak_get_info(classifier, &info) == EAK_ERR_ARGUMENT);
    info.struct_size = sizeof info;
    CHECK(eak_get_info(classifier, &info) == EAK_OK);
    CHECK(info.class_count >= 2 && info.threads == 2 && info.input_size >= 8 && info.from_cache == 0);
    CHECK(strncmp(info.runtime, "OpenVINO", 8) == 0);
    CHECK(eak_class_name(classifier, 0) != NULL && eak_class_name(classifier, info.class_count) == NULL);

    /* A grey gradient with gaps between its rows. */
    enum { width = 40, height = 30, stride = 40 * 3 + 16 };
    static uint8_t pixels[stride * height];
    for (int i = 0; i < stride * height; ++i) pixels[i] = (uint8_t)(i / 17);
    eak_prediction top[3];
    size_t count = 0;
    float *logits = malloc(info.class_count * sizeof *logits);
    CHECK(logits != NULL);
    CHECK(eak_classify(classifier, pixels, width, height, stride, top, 3, &count, logits) == EAK_OK);
    CHECK(count == (info.class_count < 3 ? info.class_count : 3));
    CHECK(top[0].logit == logits[top[0].class_index] && top[0].logit >= top[1].logit);
    CHECK(top[0].probability > 0 && top[0].probability <= 1);
    for (size_t i = 0; i < info.class_count; ++i) CHECK(isfinite(logits[i]) && logits[i] <= top[0].logit);
    /* The gaps are not looked at. */
    for (int y = 0; y < height; ++y) memset(pixels + y * stride + width * 3, 255, stride - width * 3);
    float first = logits[0];
    CHECK(eak_classify(classifier, pixels, width, height, stride, NULL, 0, NULL, logits) == EAK_OK);
    CHECK(logits[0] == first);
    free(logits);

    CHECK(eak_classify(classifier, NULL, width, height, stride, top, 3, &count, NULL) == EAK_ERR_ARGUMENT && count == 0);
    CHECK(eak_classify(classifier, pixels, width, height, 5, top, 3, &count, NULL) == EAK_ERR_ARGUMENT);
    CHECK(eak_classify(classifier, pixels, width, height, SIZE_MAX, top, 3, &count, NULL) == EAK_ERR_ARGUMENT);
    CHECK(eak_classify(classifier, pixels, -1, height, stride, top, 3, &count, NULL) == EAK_ERR_IMAGE);
    CHECK(eak_classify(classifier, pixels, 1000000, 1000000, SIZE_MAX, top, 3, &count, NULL) == EAK_ERR_IMAGE);
    CHECK(eak_classify(NULL, pixels, width, height, stride, top, 3, &count, NULL) == EAK_ERR_ARGUMENT);

    eak_image *image = NULL;
    CHECK(eak_image_read("no-such-image.jpg", &image) == EAK_ERR_IMAGE && image == NULL);
    CHECK(eak_image_decode((const uint8_t *)"hello", 5, &image) == EAK_ERR_IMAGE && image == NULL);
    CHECK(eak_image_width(NULL) == 0 && eak_image_pixels(NULL) == NULL);
    eak_image_free(NULL);
    eak_close(NULL);
    eak_close(classifier);
    puts("c_interface: passed");
    return 0;
}

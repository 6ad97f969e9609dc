/* A stand-in for NVIDIA's libnvidia-ml.so.1: a divided A100, a whole one, and one that is lost.

   Of its events the first is an XID that programs cause, the second one that means a broken device, and the fourth
   question finds the second device lost, too. */

#include <string.h>

enum { SUCCESS = 0, NOT_SUPPORTED = 3, NOT_FOUND = 6, TIMED_OUT = 10, IS_LOST = 15 };

typedef struct { unsigned long long total, free, used; } memory;
typedef struct { void *device; unsigned long long type, data; unsigned gi, ci; } event;

static char divided, whole, small, large, events;
static int asked;

int nvmlInitWithFlags(unsigned flags) { return SUCCESS; }
int nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(int error) { return error == IS_LOST ? "GPU is lost" : "an error"; }

int nvmlSystemGetDriverVersion(char *text, unsigned size) { strcpy(text, "550.54.15"); return SUCCESS; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 3; return SUCCESS; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    *device = index ? &whole : &divided;
    return index == 2 ? IS_LOST : SUCCESS;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
    if (!strcmp(uuid, "GPU-divided")) *device = &divided;
    else if (!strcmp(uuid, "GPU-whole")) *device = &whole;
    else if (!strcmp(uuid, "MIG-small")) *device = &small;
    else if (!strcmp(uuid, "MIG-large")) *device = &large;
    else return NOT_FOUND;
    return SUCCESS;
}

int nvmlDeviceGetUUID(void *device, char *text, unsigned size) {
    strcpy(text, device == &divided ? "GPU-divided" : device == &whole ? "GPU-whole"
               : device == &small ? "MIG-small" : "MIG-large");
    return SUCCESS;
}

int nvmlDeviceGetName(void *device, char *text, unsigned size) {
    strcpy(text, "NVIDIA A100-SXM4-40GB");
    if (device == &small) strcat(text, " MIG 1g.5gb");
    if (device == &large) strcat(text, " MIG 3g.20gb");
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo(void *device, memory *found) {
    found->total = 40ULL << 30;
    return device == &whole && asked >= 4 ? IS_LOST : SUCCESS;
}

int nvmlDeviceGetMigMode(void *device, unsigned *current, unsigned *pending) {
    *current = *pending = 1;
    return device == &whole ? NOT_SUPPORTED : SUCCESS;
}

int nvmlDeviceGetMaxMigDeviceCount(void *device, unsigned *count) { *count = 7; return SUCCESS; }

int nvmlDeviceGetMigDeviceHandleByIndex(void *device, unsigned index, void **instance) {
    *instance = index ? &large : &small;
    return index == 0 || index == 3 ? SUCCESS : NOT_FOUND;
}

int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(void *instance, void **device) { *device = &divided; return SUCCESS; }

int nvmlEventSetCreate(void **set) { *set = &events; return SUCCESS; }
int nvmlDeviceRegisterEvents(void *device, unsigned long long types, void *set) { return SUCCESS; }

int nvmlEventSetWait_v2(void *set, event *found, unsigned timeout) {
    asked++;
    found->device = &divided;
    found->data = asked == 1 ? 31 : 79;
    return asked <= 2 ? SUCCESS : asked == 4 ? IS_LOST : TIMED_OUT;
}

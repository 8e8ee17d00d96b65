/* A stand-in for NVIDIA's management library, for tests of the calls that the program makes through pynvml.
 *
 * It speaks the C interface of nvml.h (names, argument types, structure layouts, return codes) and answers from a text
 * file named by $NVML_STUB: lines of KEY=VALUE. A value of !N makes the call return error N; a missing key makes it
 * return "not supported". Keys of a device start with its index (0.name), those of a slice with the index of its
 * device and its own (0.mig1.name). With a key "hang" the library never finishes its beginning. Compiled with
 * -DOLD_DRIVER it lacks the calls that drivers before 510 lack.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef int nvmlReturn_t;
enum {
    NVML_SUCCESS = 0,
    NVML_ERROR_INVALID_ARGUMENT = 2,
    NVML_ERROR_NOT_SUPPORTED = 3,
    NVML_ERROR_NOT_FOUND = 6,
    NVML_ERROR_INSUFFICIENT_SIZE = 7,
    NVML_ERROR_ARGUMENT_VERSION_MISMATCH = 25,
    NVML_ERROR_UNKNOWN = 999
};
enum { NVML_CLOCK_MEM = 2, MAX_DEVICES = 16, MAX_SLICES = 7 };

typedef struct { char key[32]; } device_t;
typedef device_t *nvmlDevice_t;
typedef struct { unsigned long long total, free, used; } nvmlMemory_t;
typedef struct { unsigned int version; unsigned long long total, reserved, free, used; } nvmlMemory_v2_t;
typedef struct {
    char busIdLegacy[16];
    unsigned int domain, bus, device, pciDeviceId, pciSubSystemId;
    char busId[32];
} nvmlPciInfo_t;
typedef struct {
    unsigned int pid;
    unsigned long long usedGpuMemory;
    unsigned int gpuInstanceId, computeInstanceId;
} nvmlProcessInfo_t;

typedef struct { unsigned int gpu, memory; } nvmlUtilization_t;

static device_t devices[MAX_DEVICES][MAX_SLICES + 1];

/* Sizes of the structures above, for the test that compares them with pynvml's. */
unsigned int stub_sizeof(const char *name) {
    if (!strcmp(name, "c_nvmlMemory_t")) return sizeof(nvmlMemory_t);
    if (!strcmp(name, "c_nvmlMemory_v2_t")) return sizeof(nvmlMemory_v2_t);
    if (!strcmp(name, "c_nvmlUtilization_t")) return sizeof(nvmlUtilization_t);
    if (!strcmp(name, "nvmlPciInfo_t")) return sizeof(nvmlPciInfo_t);
    if (!strcmp(name, "c_nvmlProcessInfo_t")) return sizeof(nvmlProcessInfo_t);
    return 0;
}

static nvmlReturn_t lookup(const char *owner, const char *field, char *value, size_t size) {
    char line[1024], key[96];
    snprintf(key, sizeof key, "%s%s%s=", owner ? owner : "", owner ? "." : "", field);
    const char *path = getenv("NVML_STUB");
    FILE *file = path ? fopen(path, "r") : NULL;
    nvmlReturn_t result = NVML_ERROR_NOT_SUPPORTED;
    if (!file) return NVML_ERROR_UNKNOWN;
    while (fgets(line, sizeof line, file)) {
        if (strncmp(line, key, strlen(key))) continue;
        char *text = line + strlen(key);
        text[strcspn(text, "\n")] = 0;
        if (*text == '!') {
            result = atoi(text + 1);
        } else {
            snprintf(value, size, "%s", text);
            result = NVML_SUCCESS;
        }
        break;
    }
    fclose(file);
    return result;
}

static nvmlReturn_t number(const char *owner, const char *field, unsigned long long *out) {
    char value[64];
    nvmlReturn_t result = lookup(owner, field, value, sizeof value);
    if (result == NVML_SUCCESS) *out = strtoull(value, NULL, 10);
    return result;
}

static nvmlReturn_t small_number(nvmlDevice_t device, const char *field, unsigned int *out) {
    unsigned long long wide = 0;
    nvmlReturn_t result = number(device->key, field, &wide);
    if (result == NVML_SUCCESS) *out = (unsigned int)wide;
    return result;
}

static nvmlReturn_t text(nvmlDevice_t device, const char *field, char *out, unsigned int length) {
    char value[512];
    nvmlReturn_t result = lookup(device->key, field, value, sizeof value);
    if (result != NVML_SUCCESS) return result;
    if (strlen(value) >= length) return NVML_ERROR_INSUFFICIENT_SIZE;
    strcpy(out, value);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlInitWithFlags(unsigned int flags) {
    unsigned long long code = 0;
    nvmlReturn_t result = number(NULL, "init", &code);
    (void)flags;
    if (number(NULL, "hang", &code) == NVML_SUCCESS) for (;;) pause();
    return result == NVML_ERROR_NOT_SUPPORTED ? NVML_SUCCESS : result;
}
nvmlReturn_t nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
nvmlReturn_t nvmlShutdown(void) { return NVML_SUCCESS; }
const char *nvmlErrorString(nvmlReturn_t code) {
    static char words[64];
    snprintf(words, sizeof words, "stand-in error %d", code);
    return words;
}
static nvmlReturn_t system_text(const char *field, char *out, unsigned int length) {
    char value[512];
    nvmlReturn_t result = lookup(NULL, field, value, sizeof value);
    if (result == NVML_SUCCESS) snprintf(out, length, "%s", value);
    return result;
}
nvmlReturn_t nvmlSystemGetDriverVersion(char *out, unsigned int length) { return system_text("driver", out, length); }
nvmlReturn_t nvmlSystemGetNVMLVersion(char *out, unsigned int length) { return system_text("nvml", out, length); }
nvmlReturn_t nvmlSystemGetCudaDriverVersion(int *version) {
    unsigned long long code = 0;
    nvmlReturn_t result = number(NULL, "cuda", &code);
    if (result == NVML_SUCCESS) *version = (int)code;
    return result;
}
nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *count) {
    unsigned long long n = 0;
    nvmlReturn_t result = number(NULL, "count", &n);
    if (result == NVML_SUCCESS) *count = (unsigned int)n;
    return result;
}
nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *device) {
    char key[16];
    unsigned long long fault = 0;
    if (index >= MAX_DEVICES) return NVML_ERROR_INVALID_ARGUMENT;
    snprintf(key, sizeof key, "%u", index);
    nvmlReturn_t result = number(key, "handle", &fault);
    if (result != NVML_SUCCESS && result != NVML_ERROR_NOT_SUPPORTED) return result;
    *device = &devices[index][0];
    snprintf((*device)->key, sizeof(*device)->key, "%s", key);
    return NVML_SUCCESS;
}
nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t d, char *out, unsigned int n) { return text(d, "name", out, n); }
nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t d, char *out, unsigned int n) { return text(d, "uuid", out, n); }
nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory) {
    nvmlReturn_t result = number(device->key, "total", &memory->total);
    if (result == NVML_SUCCESS) result = number(device->key, "free", &memory->free);
    memory->used = memory->total - memory->free;
    return result;
}
nvmlReturn_t nvmlDeviceGetMaxClockInfo(nvmlDevice_t device, int type, unsigned int *mhz) {
    return type == NVML_CLOCK_MEM ? small_number(device, "memory_mhz", mhz) : NVML_ERROR_NOT_SUPPORTED;
}
nvmlReturn_t nvmlDeviceGetCudaComputeCapability(nvmlDevice_t device, int *major, int *minor) {
    nvmlReturn_t result = small_number(device, "major", (unsigned int *)major);
    return result == NVML_SUCCESS ? small_number(device, "minor", (unsigned int *)minor) : result;
}
nvmlReturn_t nvmlDeviceGetMaxPcieLinkGeneration(nvmlDevice_t d, unsigned int *n) { return small_number(d, "pcie_gen_max", n); }
nvmlReturn_t nvmlDeviceGetMaxPcieLinkWidth(nvmlDevice_t d, unsigned int *n) { return small_number(d, "pcie_width_max", n); }
nvmlReturn_t nvmlDeviceGetCurrPcieLinkGeneration(nvmlDevice_t d, unsigned int *n) { return small_number(d, "pcie_gen", n); }
nvmlReturn_t nvmlDeviceGetCurrPcieLinkWidth(nvmlDevice_t d, unsigned int *n) { return small_number(d, "pcie_width", n); }
nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t device, nvmlPciInfo_t *info) {
    memset(info, 0xFF, sizeof *info);
    return text(device, "bus_id", info->busId, sizeof info->busId);
}
nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, nvmlUtilization_t *rates) {
    rates->memory = 0;
    return small_number(device, "utilization", &rates->gpu);
}
nvmlReturn_t nvmlDeviceGetPowerUsage(nvmlDevice_t d, unsigned int *mw) { return small_number(d, "power_mw", mw); }
nvmlReturn_t nvmlDeviceGetEnforcedPowerLimit(nvmlDevice_t d, unsigned int *mw) { return small_number(d, "limit_mw", mw); }
nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t device, int sensor, unsigned int *degrees) {
    return sensor == 0 ? small_number(device, "temperature", degrees) : NVML_ERROR_INVALID_ARGUMENT;
}
nvmlReturn_t nvmlDeviceGetCurrentClocksThrottleReasons(nvmlDevice_t device, unsigned long long *reasons) {
    return number(device->key, "throttle", reasons);
}
nvmlReturn_t nvmlSystemGetProcessName(unsigned int pid, char *out, unsigned int length) {
    char field[32], value[512];
    snprintf(field, sizeof field, "process.%u", pid);
    nvmlReturn_t result = lookup(NULL, field, value, sizeof value);
    if (result != NVML_SUCCESS) return NVML_ERROR_NOT_FOUND;
    snprintf(out, length, "%s", value);
    return NVML_SUCCESS;
}

/* "PID:BYTES PID:BYTES"; bytes of "-" are the all-ones value that means "not available". */
static nvmlReturn_t processes(nvmlDevice_t device, const char *field, unsigned int *count, nvmlProcessInfo_t *infos) {
    char value[512], *entry, *rest = value;
    unsigned int n = 0, capacity = *count;
    nvmlReturn_t result = lookup(device->key, field, value, sizeof value);
    if (result == NVML_ERROR_NOT_SUPPORTED) return *count = 0, NVML_SUCCESS;
    if (result != NVML_SUCCESS) return result;
    while ((entry = strsep(&rest, " "))) {
        if (infos && n < capacity) {
            char *bytes = strchr(entry, ':') + 1;
            infos[n].pid = (unsigned int)strtoul(entry, NULL, 10);
            infos[n].usedGpuMemory = *bytes == '-' ? ~0ULL : strtoull(bytes, NULL, 10);
            infos[n].gpuInstanceId = infos[n].computeInstanceId = ~0U;
        }
        n++;
    }
    *count = n;
    return infos && n <= capacity ? NVML_SUCCESS : NVML_ERROR_INSUFFICIENT_SIZE;
}
nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v2(nvmlDevice_t d, unsigned int *n, nvmlProcessInfo_t *infos) {
    return processes(d, "compute", n, infos);
}
nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses_v2(nvmlDevice_t d, unsigned int *n, nvmlProcessInfo_t *infos) {
    return processes(d, "graphics", n, infos);
}

#ifndef OLD_DRIVER
nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t *memory) {
    nvmlMemory_t first = {0};
    if (memory->version != (2U << 24 | sizeof *memory)) return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    nvmlReturn_t result = nvmlDeviceGetMemoryInfo(device, &first);
    memory->total = first.total, memory->free = first.free, memory->used = first.used, memory->reserved = 0;
    return result;
}
nvmlReturn_t nvmlDeviceGetMemoryBusWidth(nvmlDevice_t d, unsigned int *bits) { return small_number(d, "bus_width", bits); }
nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t d, unsigned int *n, nvmlProcessInfo_t *infos) {
    return processes(d, "compute", n, infos);
}
nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses_v3(nvmlDevice_t d, unsigned int *n, nvmlProcessInfo_t *infos) {
    return processes(d, "graphics", n, infos);
}
nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t device, unsigned int *current, unsigned int *pending) {
    nvmlReturn_t result = small_number(device, "mig", current);
    *pending = *current;
    return result;
}
nvmlReturn_t nvmlDeviceGetMaxMigDeviceCount(nvmlDevice_t device, unsigned int *count) {
    (void)device;
    *count = MAX_SLICES;
    return NVML_SUCCESS;
}
nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t device, unsigned int index, nvmlDevice_t *slice) {
    char field[32], value[64];
    snprintf(field, sizeof field, "mig%u.total", index);
    if (lookup(device->key, field, value, sizeof value) != NVML_SUCCESS) return NVML_ERROR_NOT_FOUND;
    *slice = device + 1 + index;
    snprintf((*slice)->key, sizeof(*slice)->key, "%.8s.mig%u", device->key, index);
    return NVML_SUCCESS;
}
#endif

// The driver's functions of streams, events and graphs.
#include "api.h"

using namespace emulator;

namespace {

// A call that must not be made on a stream while it is captured breaks the capture.
Result check_stream_not_captured(Stream& stream) {
    if (!stream.capture) return SUCCESS;
    stream.capture->valid = false;
    return STREAM_CAPTURE_UNSUPPORTED;
}

}  // namespace

// ---------------------------------------------------------------------------------------------
// Streams

DRIVER cuStreamCreate(CUstream* stream, unsigned) {
    RETURN_IF_ERROR(check_context());
    *stream = new Stream;
    return SUCCESS;
}
DRIVER cuStreamCreateWithPriority(CUstream* stream, unsigned flags, int) {
    return cuStreamCreate(stream, flags);
}
DRIVER cuStreamDestroy_v2(CUstream stream) {
    RETURN_IF_ERROR(check_context());
    delete stream;
    return SUCCESS;
}
DRIVER cuStreamSynchronize(CUstream handle) {
    RETURN_IF_ERROR(check_context());
    Stream& stream = stream_of(handle);
    RETURN_IF_ERROR(check_stream_not_captured(stream));
    stream.wait();
    return lasting_failure;
}
DRIVER cuStreamQuery(CUstream handle) {
    RETURN_IF_ERROR(check_context());
    Stream& stream = stream_of(handle);
    RETURN_IF_ERROR(check_stream_not_captured(stream));
    return stream.idle() ? int(lasting_failure) : NOT_READY;
}
DRIVER cuStreamWaitEvent(CUstream stream, CUevent event, unsigned) {
    RETURN_IF_ERROR(check_context());
    return wait_for(*event, stream_of(stream));
}

// ---------------------------------------------------------------------------------------------
// Events

namespace {

Result check_event(const Event& event) {
    RETURN_IF_ERROR(check_context());
    RETURN_IF_ERROR(check_not_captured());
    return event.capture ? CAPTURED_EVENT : SUCCESS;
}

}  // namespace

DRIVER cuEventCreate(CUevent* event, unsigned) {
    RETURN_IF_ERROR(check_context());
    *event = new std::shared_ptr<Event>(new Event);
    return SUCCESS;
}
DRIVER cuEventDestroy_v2(CUevent event) {
    RETURN_IF_ERROR(check_context());
    delete event;
    return SUCCESS;
}
DRIVER cuEventRecord(CUevent event, CUstream stream) {
    RETURN_IF_ERROR(check_context());
    return record(*event, stream_of(stream));
}
DRIVER cuEventQuery(CUevent handle) {
    Event& event = **handle;
    std::lock_guard<std::mutex> lock(event.mutex);
    RETURN_IF_ERROR(check_event(event));
    return event.num_completed == event.num_recorded ? SUCCESS : NOT_READY;
}
DRIVER cuEventSynchronize(CUevent handle) {
    Event& event = **handle;
    std::unique_lock<std::mutex> lock(event.mutex);
    RETURN_IF_ERROR(check_event(event));
    // After a failure nothing is completed any more.
    while (event.num_completed < event.num_recorded && !lasting_failure) {
        event.changed.wait_for(lock, std::chrono::milliseconds(10));
    }
    return lasting_failure;
}
DRIVER cuEventElapsedTime_v2(float* milliseconds, CUevent start_handle, CUevent end_handle) {
    Event &start = **start_handle, &end = **end_handle;
    std::scoped_lock lock(start.mutex, end.mutex);
    RETURN_IF_ERROR(check_context());
    if (!start.num_recorded || !end.num_recorded) return INVALID_HANDLE;
    if (start.num_completed != start.num_recorded || end.num_completed != end.num_recorded) {
        return NOT_READY;
    }
    *milliseconds = std::chrono::duration<float, std::milli>(end.time - start.time).count();
    return SUCCESS;
}
DRIVER cuEventElapsedTime(float* milliseconds, CUevent start, CUevent end) {
    return cuEventElapsedTime_v2(milliseconds, start, end);
}

// ---------------------------------------------------------------------------------------------
// Graphs

DRIVER cuStreamBeginCapture_v2(CUstream stream, int mode) {
    RETURN_IF_ERROR(check_context());
    if (mode < 0 || mode > 2) return INVALID_VALUE;
    return begin_capture(stream_of(stream), CaptureMode(mode));
}
DRIVER cuStreamEndCapture(CUstream stream, CUgraph* graph) {
    RETURN_IF_ERROR(check_context());
    return end_capture(stream_of(stream), graph);
}
// 0: not captured, 1: captured, 2: captured, but a call has broken it.
DRIVER cuStreamIsCapturing(CUstream handle, int* status) {
    RETURN_IF_ERROR(check_context());
    Stream& stream = stream_of(handle);
    *status = !stream.capture ? 0 : stream.capture->valid ? 1 : 2;
    return SUCCESS;
}
DRIVER cuGraphInstantiateWithFlags(CUgraphExec* executable, CUgraph graph, unsigned long long) {
    RETURN_IF_ERROR(check_context());
    *executable = new Graph(*graph);
    return SUCCESS;
}
DRIVER cuGraphUpload(CUgraphExec, CUstream) { return check_context(); }
DRIVER cuGraphLaunch(CUgraphExec executable, CUstream stream) {
    RETURN_IF_ERROR(check_context());
    for (const Operation& operation : executable->operations) {
        RETURN_IF_ERROR(stream_of(stream).enqueue(operation));
    }
    return lasting_failure;
}
DRIVER cuGraphGetNodes(CUgraph graph, void** nodes, size_t* count) {
    RETURN_IF_ERROR(check_context());
    if (nodes) return NOT_SUPPORTED;
    *count = graph->operations.size();
    return SUCCESS;
}
DRIVER cuGraphDestroy(CUgraph graph) {
    RETURN_IF_ERROR(check_context());
    delete graph;
    return SUCCESS;
}
DRIVER cuGraphExecDestroy(CUgraphExec executable) {
    RETURN_IF_ERROR(check_context());
    delete executable;
    return SUCCESS;
}

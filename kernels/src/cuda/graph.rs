//! Launches that were recorded once, and are given to the device as one.

use std::sync::Arc;

use cudarc::driver::{result, sys};

use super::error::{CudaError, check};
use super::{Gpu, Inner};

/// A recorded sequence of launches. It repeats them with the same arguments: what varies between
/// two runs is read from the device's memory.
///
/// Whoever records sees to it that the arrays of the launches live as long as the graph.
#[derive(Debug)]
pub struct Graph {
    gpu: Arc<Inner>,
    graph: sys::CUgraphExec,
}

// SAFETY: it is a number that the driver looks up, and the driver is thread-safe.
#[allow(unsafe_code)]
unsafe impl Send for Graph {}

#[allow(unsafe_code)]
impl Gpu {
    /// Records what `launches` gives to the stream, without running it. Everything that it launches
    /// must have been launched before, because kernels are loaded then, and it must take no memory.
    pub fn record<Error: From<CudaError>>(
        &self,
        launches: impl FnOnce() -> Result<(), Error>,
    ) -> Result<Graph, Error> {
        use sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        let stream = self.0.stream;
        // SAFETY: the stream lives as long as `self`.
        unsafe {
            let begun = result::stream::begin_capture(stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
            check("cuStreamBeginCapture", begun)?;
        }
        let outcome = launches();
        // Also a recording that failed has to be ended, or the stream stays unusable.
        // SAFETY: as above.
        let graph = unsafe { check("cuStreamEndCapture", result::stream::end_capture(stream)) };
        outcome?;
        let graph = graph?;
        // SAFETY: the graph was just recorded, and is not used after it was instantiated.
        let executable = unsafe {
            let none = sys::CUgraphInstantiate_flags(0);
            let executable = check("cuGraphInstantiate", result::graph::instantiate(graph, none));
            let _ = result::graph::destroy(graph);
            executable?
        };
        let graph = Graph { gpu: self.0.clone(), graph: executable };
        graph.upload()?;
        Ok(graph)
    }
}

#[allow(unsafe_code)]
impl Graph {
    /// Gives it to the stream.
    pub fn launch(&self) -> Result<(), CudaError> {
        // SAFETY: both live as long as `self`.
        unsafe { check("cuGraphLaunch", result::graph::launch(self.graph, self.gpu.stream)) }
    }

    /// Puts it on the device, so that the first launch is like the others.
    fn upload(&self) -> Result<(), CudaError> {
        // SAFETY: both live as long as `self`.
        unsafe { check("cuGraphUpload", result::graph::upload(self.graph, self.gpu.stream)) }
    }
}

#[allow(unsafe_code)]
impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: it is destroyed once; the driver finishes what runs.
        unsafe {
            let _ = self.gpu.bind();
            let _ = result::graph::exec_destroy(self.graph);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::gpu;
    use super::*;

    #[test]
    fn a_recording_runs_when_it_is_launched_and_as_often() {
        let Some(gpu) = gpu() else { return };
        let arrays = [[1_u32, 2], [3, 4]].map(|values| gpu.upload(&values).unwrap());
        let graph = gpu
            .record(|| {
                gpu.copy(&arrays[0], &arrays[1])?;
                gpu.clear(&arrays[0].slice(0..1))
            })
            .unwrap();
        let read = |array| gpu.download::<u32>(array).unwrap();
        assert_eq!([read(&arrays[0]), read(&arrays[1])], [[1, 2], [3, 4]], "recorded, not run");
        graph.launch().unwrap();
        assert_eq!([read(&arrays[0]), read(&arrays[1])], [[0, 2], [1, 2]]);
        graph.launch().unwrap();
        assert_eq!(read(&arrays[1]), [0, 2]);
    }

    #[test]
    fn a_recording_that_fails_leaves_the_stream_usable() {
        let Some(gpu) = gpu() else { return };
        let failed = gpu.record(|| Err(CudaError::NoDriver));
        assert!(matches!(failed, Err(CudaError::NoDriver)));
        assert_eq!(gpu.download::<u32>(&gpu.upload(&[7_u32]).unwrap()).unwrap(), [7]);
    }
}

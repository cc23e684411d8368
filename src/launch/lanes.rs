//! Two lanes in a captured graph: in a backward the gradient of a weight waits
//! for its layer's mask only, and nothing waits for it.

use cudarc::driver::sys::{
    self, CUgraphEdgeData, CUgraphNode, CUstream, CUstreamCaptureStatus as Status,
    CUstreamUpdateCaptureDependencies_flags as Flags,
};

use super::Refusal;

/// An edge that waits for all of a node.
const FULL: CUgraphEdgeData =
    CUgraphEdgeData { from_port: 0, to_port: 0, type_: 0, reserved: [0; 5] };

/// What a launch is to come behind.
#[derive(Clone, Default)]
struct Behind {
    nodes: Vec<CUgraphNode>,
    edges: Vec<CUgraphEdgeData>,
}

impl Behind {
    fn and(mut self, other: &Self) -> Self {
        for (node, edge) in other.nodes.iter().zip(&other.edges) {
            if !self.nodes.contains(node) {
                self.nodes.push(*node);
                self.edges.push(*edge);
            }
        }
        self
    }
}

/// The capture of a stream, whose own tail is the main lane.
pub struct Lanes {
    stream: CUstream,
    /// Last nodes of the other lane.
    side: Behind,
    /// What the other lane reads: an address, and the nodes that do.
    reading: Vec<(usize, Behind)>,
}

impl Lanes {
    /// `None` where `stream` is not being captured: there every launch is in
    /// the stream's order.
    pub fn of(stream: CUstream) -> Option<Self> {
        let lanes = Self { stream, side: Behind::default(), reading: vec![] };
        lanes.tail().ok().flatten().map(|_| lanes)
    }

    /// Puts `launch` on the other lane, behind all that is on this one by now;
    /// it reads `address`.
    pub fn aside(
        &mut self,
        address: usize,
        launch: impl FnOnce() -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        let main = self.nodes()?;
        if main.nodes.is_empty() {
            return launch(); // Nothing to wait for, nothing to branch from.
        }
        self.continue_behind(main.clone().and(&self.side))?;
        launch()?;
        self.side = self.nodes()?;
        self.reading.push((address, self.side.clone()));
        self.continue_behind(main)
    }

    /// The main lane goes on to overwrite `address` (0 for none): behind who
    /// reads it.
    pub fn before_write(&mut self, address: usize) -> Result<(), Refusal> {
        let mut readers = self.reading.iter().filter(|(read, _)| *read == address).peekable();
        if address == 0 || readers.peek().is_none() {
            return Ok(());
        }
        let behind = readers.fold(self.nodes()?, |behind, (_, nodes)| behind.and(nodes));
        self.continue_behind(behind)
    }

    /// Whatever comes next comes behind both lanes.
    pub fn join(self) -> Result<(), Refusal> {
        if self.side.nodes.is_empty() {
            return Ok(());
        }
        self.continue_behind(self.nodes()?.and(&self.side))
    }

    fn nodes(&self) -> Result<Behind, Refusal> {
        self.tail()?.ok_or_else(|| Refusal::failure("the capture ended within a call"))
    }

    /// What the stream's next launch will come behind.
    fn tail(&self) -> Result<Option<Behind>, Refusal> {
        let mut status = Status::CU_STREAM_CAPTURE_STATUS_NONE;
        let (mut graph, mut nodes, mut edges) =
            (std::ptr::null_mut(), std::ptr::null(), std::ptr::null());
        let (mut id, mut count) = (0, 0);
        // SAFETY: a live stream; writes one of each, and the arrays stay
        // CUDA's until the stream's next call.
        unsafe {
            sys::cuStreamGetCaptureInfo_v3(
                self.stream,
                &mut status,
                &mut id,
                &mut graph,
                &mut nodes,
                &mut edges,
                &mut count,
            )
        }
        .result()
        .map_err(|error| Refusal::driver("reading a capture's state", error))?;
        if status != Status::CU_STREAM_CAPTURE_STATUS_ACTIVE {
            return Ok(None);
        }
        if nodes.is_null() || count == 0 {
            return Ok(Some(Behind::default()));
        }
        // SAFETY: `count` nodes, as CUDA just said.
        let nodes = unsafe { std::slice::from_raw_parts(nodes, count) }.to_vec();
        let edges = if edges.is_null() {
            vec![FULL; count]
        } else {
            // SAFETY: as many edges as nodes.
            unsafe { std::slice::from_raw_parts(edges, count) }.to_vec()
        };
        Ok(Some(Behind { nodes, edges }))
    }

    fn continue_behind(&self, mut behind: Behind) -> Result<(), Refusal> {
        let flags = Flags::CU_STREAM_SET_CAPTURE_DEPENDENCIES as u32;
        // SAFETY: nodes of this capture's graph, as `tail` read them, and as
        // many edges; only read.
        unsafe {
            sys::cuStreamUpdateCaptureDependencies_v2(
                self.stream,
                behind.nodes.as_mut_ptr(),
                behind.edges.as_ptr(),
                behind.nodes.len(),
                flags,
            )
        }
        .result()
        .map_err(|error| Refusal::driver("branching a capture", error))
    }
}

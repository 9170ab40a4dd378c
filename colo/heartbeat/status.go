package heartbeat

import (
	"fmt"
	"slices"
	"time"
)

// Kind of an event.
type Kind string

// Kinds of events.
const (
	PeerAlive     Kind = "peer alive"     // the first datagram, or the first after it was lost
	PeerLost      Kind = "peer lost"      // no path receives, for Timeout; also if it was never heard in the first Timeout
	PeerRestarted Kind = "peer restarted" // the peer's monitor has a new incarnation
	PathUp        Kind = "path up"        // the path works in both directions
	PathDown      Kind = "path down"      // it doesn't any more, in at least one
	Stalled       Kind = "stalled"        // this node was late; suspicions start anew
	PathBroken    Kind = "path broken"    // it has no socket: another program has its port, or this host lacks its address
)

// Event is a change.
type Event struct {
	Kind   Kind
	Path   string        // of PathUp, PathDown and PathBroken
	Err    error         // of PathBroken: why
	Late   time.Duration // of Stalled: by how much
	Time   time.Time
	Status Status // everything, right after the change
}

// String is made for logs.
func (e Event) String() string {
	switch {
	case e.Err != nil:
		return fmt.Sprintf("%s: %v", e.Kind, e.Err)
	case e.Path != "":
		return fmt.Sprintf("%s: %s", e.Kind, e.Path)
	case e.Kind == Stalled:
		return fmt.Sprintf("%s for %v", e.Kind, e.Late)
	default:
		return fmt.Sprintf("%s: %s", e.Kind, e.Status.Peer)
	}
}

// PeerState is what is believed of the peer.
type PeerState string

// States of the peer.
const (
	Unknown PeerState = "unknown" // not heard, and the first Timeout isn't over
	Alive   PeerState = "alive"
	Lost    PeerState = "lost"
)

// Status of a Monitor.
type Status struct {
	Peer  string
	State PeerState
	// Since is when State began.
	Since time.Time
	// LastHeard is when the last datagram came, on any path; zero if never.
	LastHeard time.Time
	// Confirmed is when the newest of our datagrams was sent that the peer says it has heard, on any path; zero if it has heard none. The peer can't have
	// counted this node as silent from before that.
	Confirmed time.Time
	// Incarnation of the peer, 0 if it was never heard.
	Incarnation uint64
	// Stalls counts how often this node was late.
	Stalls uint64
	// Paths are in the order of Config.Paths.
	Paths []PathStatus
}

// Path returns the status of one path, the zero value if there is none of that name.
func (s Status) Path(name string) PathStatus {
	if i := slices.IndexFunc(s.Paths, func(p PathStatus) bool { return p.Name == name }); i >= 0 {
		return s.Paths[i]
	}
	return PathStatus{}
}

// Down returns the names of the paths that aren't up.
func (s Status) Down() []string {
	var out []string
	for _, p := range s.Paths {
		if !p.Up {
			out = append(out, p.Name)
		}
	}
	return out
}

// PathStatus of one path.
type PathStatus struct {
	Name string
	// Up is Receiving and Sending.
	Up bool
	// Receiving: the peer was heard within Timeout.
	Receiving bool
	// Sending: the peer says that it heard us within Timeout. Not known, and false, while not receiving.
	Sending   bool
	LastHeard time.Time
	// RTT is the last round trip measured, 0 if none was.
	RTT time.Duration
	// RTTMin is the least of the last 20.
	RTTMin time.Duration
	// Err is why the path has no socket; nil if it has one.
	Err error
	Counters
}

// Counters of a path. They only rise.
type Counters struct {
	Sent, SendErrors uint64
	Received         uint64 // valid ones
	Missing          uint64 // gaps in the numbers of valid ones
	// The others were ignored.
	Malformed   uint64 // no datagram of ours, or of another version
	WrongKey    uint64
	Foreign     uint64 // valid, but of another node or path, or our own reflected
	Replayed    uint64 // seen before, overtaken, or of an earlier incarnation
	Unconfirmed uint64 // the sender hasn't heard our present incarnation yet: normal at the start
}

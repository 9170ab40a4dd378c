package compare

import (
	"fmt"
	"time"
)

// Reason is why a checkpoint is asked for.
type Reason uint8

func (r Reason) String() string {
	if int(r) < len(reasonNames) {
		return reasonNames[r]
	}
	return fmt.Sprintf("reason %d", uint8(r))
}

// Config is how an engine compares. The zero value of each field is its default.
type Config struct {
	// Timeout is how long data of the primary waits for the secondary's; 20 ms.
	Timeout time.Duration
	// AckTimeout is the same for packets without data. The two copies' delayed acknowledgements are up to 40 ms apart, and
	// a checkpoint in the middle of a handshake costs another one, so it is longer; 60 ms.
	AckTimeout time.Duration
	// Rest is how long the guest runs at least between a checkpoint and the next one that the engine asks for, as a multiple
	// of the last pause; 0.5. Negative is none.
	Rest float64
	// Retry is when a checkpoint that doesn't begin is asked for again; 1 s.
	Retry time.Duration
	// FlowBytes bounds what one flow of one copy may keep waiting, TotalBytes all that wait; 8 and 64 MiB.
	FlowBytes, TotalBytes int
	// Flows bounds the number of flows that are remembered; 65536.
	Flows int
	// Datagrams bounds the secondary's datagrams of a flow that wait for the primary's; 64.
	Datagrams int
	// Rules let flows pass or not; the first that fits decides, and without one a flow is compared.
	Rules []Rule
}

func (c Config) withDefaults() Config {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	num := func(n *int, v int) {
		if *n == 0 {
			*n = v
		}
	}
	def(&c.Timeout, 20*time.Millisecond)
	def(&c.AckTimeout, max(60*time.Millisecond, c.Timeout))
	def(&c.Retry, time.Second)
	num(&c.FlowBytes, 8<<20)
	num(&c.TotalBytes, 64<<20)
	num(&c.Flows, 65536)
	num(&c.Datagrams, 64)
	if c.Rest == 0 {
		c.Rest = 0.5
	}
	return c
}

// Output is what an engine does to the world. Its methods must not call the engine.
type Output interface {
	// Release lets a frame go to its NIC's tap. The output must Keep the chunk for as long as it needs the frame.
	Release(nic uint8, frame []byte, c *Chunk)
	// Checkpoint asks for one.
	Checkpoint(why Reason)
}

// Frame is a packet as QEMU's redirectors frame it.
type Frame struct {
	NIC   uint8
	All   []byte // with the lengths before it
	Head  int    // where in All the Ethernet header begins
	Chunk *Chunk // that All lies in
}

// Stats counts what an engine has done since it was made.
type Stats struct {
	Primary     uint64            `json:"primary"`   // packets that came
	Secondary   uint64            `json:"secondary"` // packets that came
	Released    uint64            `json:"released"`  // the primary's packets that left
	Waited      uint64            `json:"waited"`    // of them, those that had to wait
	Covered     uint64            `json:"covered"`   // of those, the ones that a checkpoint let go
	Dropped     uint64            `json:"dropped"`   // the primary's packets that a bound or an end has dropped
	Checkpoints uint64            `json:"checkpoints"`
	Asked       map[string]uint64 `json:"asked"` // checkpoints that were asked for, by reason
	Late        map[string]uint64 `json:"late"`  // packets that asked for one because they were late, by kind
	Flows       int               `json:"flows"`
	Waiting     int               `json:"waiting"` // packets
	Mode        string            `json:"mode"`
}

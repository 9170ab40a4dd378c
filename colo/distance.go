package colo

import (
	"errors"
	"fmt"
	"time"
)

// ErrTooFar is returned by what would protect a VM over links whose round trips take longer than NodeConfig.MaxLinkRTT. A VM that is protected stays so.
var ErrTooFar = errors.New("the peer is too far away to protect a VM by it")

// far says whether a round trip is more than the owner wants to have in every checkpoint.
func (c *NodeConfig) far(rtt time.Duration) bool { return c.MaxLinkRTT > 0 && rtt > c.MaxLinkRTT }

// near fails if no link is known to be near enough. One that nothing was measured of may be.
func (p *partnership) near(c *NodeConfig) error { return c.distance(p.status(c).Links) }

func (c *NodeConfig) distance(links []LinkStatus) error {
	var least time.Duration
	name := ""
	for _, l := range links {
		switch {
		case !l.Up:
		case !c.far(l.RTTMin):
			return nil
		case name == "" || l.RTTMin < least:
			least, name = l.RTTMin, l.Name
		}
	}
	if name == "" {
		return nil // none is up: others say so
	}
	return fmt.Errorf("%w: a round trip over %s takes %v, max-link-rtt is %v, and several of them are in every checkpoint; raise it if the guest's users can bear that", ErrTooFar, name,
		least.Round(10*time.Microsecond), c.MaxLinkRTT)
}

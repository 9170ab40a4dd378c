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

// TooFar says whether all links that are up are farther than the node protects VMs over, and which of them is the nearest. One that nothing was measured of may be near.
func (p PeerStatus) TooFar() (nearest LinkStatus, far bool) {
	for _, l := range p.Links {
		switch {
		case !l.Up:
		case !l.Far:
			return LinkStatus{}, false
		case !far || l.RTTMin < nearest.RTTMin:
			nearest, far = l, true
		}
	}
	return nearest, far
}

// near fails if no link is known to be near enough.
func (p *partnership) near(c *NodeConfig) error {
	l, far := p.status(c).TooFar()
	if !far {
		return nil
	}
	return fmt.Errorf("%w: a round trip over %s takes %v, max-link-rtt is %v, and several of them are in every checkpoint; raise it if the guest's users can bear that", ErrTooFar, l.Name,
		l.RTTMin.Round(10*time.Microsecond), c.MaxLinkRTT)
}

package colo

import "time"

// This file tells whether two nodes fit each other.

// compare says why a VM can't be protected together with another node.
func (n *Node) compare(there NodeInfo) error {
	if there.QEMU != n.qemu {
		return &PeerMismatchError{"the version of QEMU", n.qemu, there.QEMU}
	}
	if there.Accel != n.cfg.Accel {
		return &PeerMismatchError{"the accelerator", n.cfg.Accel, there.Accel}
	}
	if there.Plain != n.cfg.Plain {
		return &PeerMismatchError{"encryption of replication", encryption(n.cfg.Plain), encryption(there.Plain)}
	}
	if own := n.cfg.startedBy(); there.Starter != own {
		return &PeerMismatchError{"what starts QEMU", starterName(own), starterName(there.Starter)}
	}
	// A secondary that has won speaks when the primary's lease has ended by its own figures.
	for _, t := range []struct {
		what        string
		here, there time.Duration
	}{{"the heartbeats' interval", n.cfg.HeartbeatInterval, there.HeartbeatInterval}, {"the heartbeats' timeout", n.cfg.HeartbeatTimeout, there.HeartbeatTimeout}} {
		if t.there != 0 && t.there != t.here { // an older peer doesn't tell
			return &PeerMismatchError{t.what, t.here.String(), t.there.String()}
		}
	}
	return nil
}

func encryption(plain bool) string {
	if plain {
		return "off"
	}
	return "on"
}

func starterName(name string) string {
	if name == "" {
		return "colod itself"
	}
	return name
}

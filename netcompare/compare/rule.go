package compare

import (
	"fmt"
	"net/netip"
	"slices"
)

// Rule says of some flows whether they are compared. Fields that are zero fit all.
type Rule struct {
	Protocol   string       `json:"protocol,omitempty"` // tcp, udp, icmp (of both IPs); "" is any over IP
	Guest      uint16       `json:"guest,omitempty"`    // the guest's port
	RemotePort uint16       `json:"remote_port,omitempty"`
	Remote     netip.Prefix `json:"remote"` // the other's addresses
	// Pass lets these flows leave at once. After a failover their other end may know more than the guest.
	Pass bool `json:"pass"`
}

// Protocols that a rule may name.
var Protocols = []string{"tcp", "udp", "icmp"}

// Check says what is wrong with r.
func (r Rule) Check() error {
	if r.Protocol != "" && !slices.Contains(Protocols, r.Protocol) {
		return fmt.Errorf("protocol %q is not one of %v", r.Protocol, Protocols)
	}
	if (r.Guest != 0 || r.RemotePort != 0) && r.Protocol != "tcp" && r.Protocol != "udp" {
		return fmt.Errorf("ports need the protocol tcp or udp, not %q", r.Protocol)
	}
	return nil
}

func (r *Rule) fits(k *key) bool {
	switch r.Protocol {
	case "tcp":
		if k.proto != protoTCP {
			return false
		}
	case "udp":
		if k.proto != protoUDP {
			return false
		}
	case "icmp":
		if k.proto != protoICMP && k.proto != protoICMPv6 {
			return false
		}
	}
	if (r.Guest != 0 && r.Guest != k.sport) || (r.RemotePort != 0 && r.RemotePort != k.dport) || k.proto == protoBroken {
		return false
	}
	if r.Remote.IsValid() {
		_, remote := k.addrs()
		return r.Remote.Contains(remote)
	}
	return true
}

func passes(rules []Rule, k *key) bool {
	for i := range rules {
		if rules[i].fits(k) {
			return rules[i].Pass
		}
	}
	return false
}

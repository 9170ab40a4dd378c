// Package guest makes the virtual machine of the lab and the tests: an
// initramfs with one static Go program in it (internal/guest/init) and the few
// kernel modules that it needs, and an empty disk. What the guest then serves
// is in package service, its download data in package blob.
//
// Images are files in a cache folder, named by a hash of all that went into
// them and put there by rename, so any number of processes may ask for the same
// image at once. The functions share no state.
package guest

import (
	"fmt"
	"strings"
)

// ReadyLine is the beginning of the line that a guest writes to its console
// when all services accept clients; the boot id follows. FailedLine begins the
// line that it writes before it gives up; the reason follows.
const (
	ReadyLine  = "GUEST-READY "
	FailedLine = "GUEST-FAILED "
)

// Network is what the guest is told about its network.
type Network struct {
	// Addresses with prefix length ("10.77.0.10/24") of eth0, eth1 and so on;
	// several of one interface have commas between them, an empty one leaves
	// that interface down.
	Addresses []string
	Gateway   string
}

// CommandLine returns the kernel command line of a guest.
func CommandLine(n Network) string {
	words := []string{
		"console=ttyS0", "quiet",
		// A guest that panics must be seen to end, not to hang.
		"panic=-1",
		// Saves a tenth of a second of probing for a keyboard and a mouse.
		"i8042.noaux", "i8042.nokbd",
		// A kernel that comes to doubt this clock patches its own code, which a secondary under TCG doesn't notice: docs/compatibility.md.
		"tsc=reliable",
		// Predictable names need udev; ours are the kernel's.
		"net.ifnames=0",
	}
	for i, a := range n.Addresses {
		switch {
		case a == "":
		case i == 0:
			words = append(words, "colo.ip="+a)
		default:
			words = append(words, fmt.Sprintf("colo.ip%d=%s", i, a))
		}
	}
	if n.Gateway != "" {
		words = append(words, "colo.gw="+n.Gateway)
	}
	return strings.Join(words, " ")
}

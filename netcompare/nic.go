package netcompare

import (
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"net"
	"regexp"
	"strings"
)

// VirtioNet is the model of a NIC that doesn't say any.
const VirtioNet = "virtio-net-pci"

// models that the filters are known to work with. Only virtio's packets carry a virtio-net header through the filters,
// and the filters must be told: with the wrong word they parse the header as Ethernet.
// Other models (e1000e, vmxnet3) use the header or not as the guest's driver likes.
var models = map[string]struct{ vnetHdr bool }{
	VirtioNet: {vnetHdr: true},
	"e1000":   {},
	"rtl8139": {},
}

// ErrNIC is matched by every error about how a NIC is described.
var ErrNIC = errors.New("bad NIC")

// NIC is one network card of a VM, on either node.
type NIC struct {
	Name   string // [a-z][a-z0-9-]{0,15}, unique in the VM; ids in QEMU are made from it
	MAC    string // the guest's address, the same on both nodes
	Model  string // virtio-net-pci (default), e1000 or rtl8139
	Bridge string // of this node, that Join puts the tap into
	Tap    string // of this node, at most 15 characters; see TapName
}

var (
	nicName  = regexp.MustCompile(`^[a-z][a-z0-9-]{0,15}$`)
	linkName = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,15}$`)
)

// Check reports what is wrong with nics, all of it, as errors that match ErrNIC.
func Check(nics []NIC) error {
	var errs []error
	names, macs, taps := map[string]bool{}, map[string]bool{}, map[string]bool{}
	for _, n := range nics {
		bad := func(format string, args ...any) {
			errs = append(errs, fmt.Errorf("%w %q: %s", ErrNIC, n.Name, fmt.Sprintf(format, args...)))
		}
		if !nicName.MatchString(n.Name) {
			bad("a name is a small letter and at most 15 of a-z, 0-9 and -")
		}
		if names[n.Name] {
			bad("two NICs have this name")
		}
		names[n.Name] = true
		if _, ok := models[n.model()]; !ok {
			bad("model %q is not one of virtio-net-pci, e1000, rtl8139", n.Model)
		}
		if mac, err := net.ParseMAC(n.MAC); err != nil || len(mac) != 6 {
			bad("%q is not a MAC address", n.MAC)
		} else if mac[0]&1 != 0 {
			bad("%s is a multicast address", n.MAC)
		} else if macs[mac.String()] {
			bad("two NICs have the address %s", mac)
		} else {
			macs[mac.String()] = true
		}
		if !linkName.MatchString(n.Tap) || n.Tap == "." || n.Tap == ".." {
			bad("tap %q is not an interface name of 1 to 15 characters", n.Tap)
		} else if taps[n.Tap] {
			bad("two NICs have the tap %s", n.Tap)
		}
		taps[n.Tap] = true
		if n.Bridge != "" && (!linkName.MatchString(n.Bridge) || n.Bridge == n.Tap) {
			bad("bridge %q is not an interface name of 1 to 15 characters", n.Bridge)
		}
	}
	for _, n := range nics {
		// The ends of local socket pairs are called after the pair plus "-0".
		if names[n.Name+"-0"] {
			errs = append(errs, fmt.Errorf("%w %q: the name of %s-0 differs from it only by -0", ErrNIC, n.Name, n.Name))
		}
	}
	return errors.Join(errs...)
}

// TapName makes the name of a tap: the same for the same VM and NIC, readable at its beginning, and 15 characters at most.
func TapName(vm, nic string) string {
	sum := sha256.Sum256([]byte(vm + "\x00" + nic))
	tail := strings.ToLower(base32.StdEncoding.EncodeToString(sum[:5]))
	head := strings.Map(func(r rune) rune {
		if strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", r) {
			return r
		}
		return -1
	}, vm)
	if len(head) > 6 {
		head = head[:6]
	}
	return head + "-" + tail
}

// Args are QEMU's arguments for the NICs, in their order (which decides the PCI slots, so it must be the same on both
// nodes). vhost and several queues would bypass the filters; a boot ROM would differ between two installations of QEMU.
func Args(nics []NIC) []string {
	var args []string
	for _, n := range nics {
		hdr := ""
		if !n.vnetHdr() {
			hdr = ",vnet_hdr=off"
		}
		args = append(args,
			"-netdev", fmt.Sprintf("tap,id=%s,ifname=%s,script=no,downscript=no,vhost=off%s", n.netdev(), n.Tap, hdr),
			"-device", fmt.Sprintf("%s,id=%s,netdev=%s,mac=%s,romfile=", n.model(), n.Name, n.netdev(), n.MAC))
	}
	return args
}

func (n NIC) model() string {
	if n.Model == "" {
		return VirtioNet
	}
	return n.Model
}

func (n NIC) vnetHdr() bool { return models[n.model()].vnetHdr }

// Ids inside QEMU.

func (n NIC) netdev() string { return "nd-" + n.Name }

// The two streams between the nodes: packets from the LAN to the secondary, the secondary's packets to the primary.
func (n NIC) mirrorStream() string  { return "cm-" + n.Name }
func (n NIC) compareStream() string { return "cs-" + n.Name }

// The primary's local pairs of sockets into the comparer and out of it; the "-0" end is the comparer's.
func (n NIC) compareIn() string     { return "cp-" + n.Name }
func (n NIC) compareInEnd() string  { return "cp-" + n.Name + "-0" }
func (n NIC) compareOut() string    { return "co-" + n.Name }
func (n NIC) compareOutEnd() string { return "co-" + n.Name + "-0" }

// The primary's objects.
func (n NIC) mirror() string    { return "mirror-" + n.Name }
func (n NIC) released() string  { return "redin-" + n.Name }
func (n NIC) toCompare() string { return "redout-" + n.Name }
func (n NIC) comparer() string  { return "comp-" + n.Name }
func (n NIC) iothread() string  { return "io-" + n.Name }

// The primary's parts for a comparer outside of QEMU: see external.go.
func (n NIC) secondaryOut() string { return "cr-" + n.Name }
func (n NIC) sinkDev(i int) string { return fmt.Sprintf("ck%d-%s", i, n.Name) }
func (n NIC) sink(i int) string    { return fmt.Sprintf("sink%d-%s", i, n.Name) }
func (n NIC) fromPeer() string     { return "secin-" + n.Name }
func (n NIC) toProcess() string    { return "secout-" + n.Name }

// The secondary's objects.
func (n NIC) mirrorIn() string  { return "fin-" + n.Name }
func (n NIC) compareTo() string { return "fout-" + n.Name }
func (n NIC) rewriter() string  { return "rew-" + n.Name }

package blockrepl

import (
	"encoding/json"
	"path/filepath"

	"github.com/coloctl/coloctl/qmp"
)

// Arguments are written as JSON, which both -blockdev and -device take: a comma
// in a path then needs no quoting.

type fileNode struct {
	Driver   string `json:"driver"`
	NodeName string `json:"node-name"`
	Filename string `json:"filename"`
	Discard  string `json:"discard,omitempty"`
}

type formatNode struct {
	Driver   string   `json:"driver"`
	NodeName string   `json:"node-name"`
	Discard  string   `json:"discard,omitempty"`
	File     fileNode `json:"file"`
	Backing  string   `json:"backing,omitempty"`
	Size     int64    `json:"size,omitempty"`
}

type replicationNode struct {
	Driver   string `json:"driver"`
	NodeName string `json:"node-name"`
	Mode     string `json:"mode"`
	TopID    string `json:"top-id"`
	File     string `json:"file"`
}

type quorumNode struct {
	Driver        string   `json:"driver"`
	NodeName      string   `json:"node-name"`
	Discard       string   `json:"discard"`
	ReadPattern   string   `json:"read-pattern"`
	VoteThreshold int      `json:"vote-threshold"`
	Children      []string `json:"children"`
}

type device struct {
	Driver  string `json:"driver"`
	ID      string `json:"id"`
	Drive   string `json:"drive"`
	Serial  string `json:"serial,omitempty"`
	Discard bool   `json:"discard"`
}

// nbdNode is a client of the peer's export. OpenTimeout bounds, in seconds, how
// long QEMU's main loop hangs in blockdev-add on a peer that accepts and then
// says nothing; a yank doesn't help before the connection is established.
type nbdNode struct {
	Driver       string          `json:"driver"`
	NodeName     string          `json:"node-name"`
	Server       json.RawMessage `json:"server"`
	Export       string          `json:"export"`
	TLSCreds     string          `json:"tls-creds,omitempty"`
	OpenTimeout  int             `json:"open-timeout"`
	Discard      string          `json:"discard"`
	DetectZeroes string          `json:"detect-zeroes,omitempty"`
}

// unmap lets zeroes that are written with permission to unmap make holes. Every
// node on the way needs it; the first one without drops the permission.
const unmap = "unmap"

func parentNode(d Disk) formatNode {
	n := formatNode{
		Driver: d.Format, NodeName: d.parent(), Discard: unmap,
		File: fileNode{Driver: "file", NodeName: d.parentFile(), Filename: d.Path, Discard: unmap},
	}
	if d.onDevice() {
		n.File.Driver = "host_device"
		if d.Format == Raw {
			n.Size = d.Size // the device may be larger
		}
	}
	return n
}

func overlayNode(name, fileName, path, backing string) formatNode {
	return formatNode{
		Driver: QCOW2, NodeName: name, Backing: backing,
		File: fileNode{Driver: "file", NodeName: fileName, Filename: path},
	}
}

// topNode is what the device uses. With vote-threshold 1 a write is good for
// the guest if one child has it, and with read-pattern fifo the first child
// that can read answers: the local one as long as it works.
func topNode(d Disk, child string) quorumNode {
	return quorumNode{
		Driver: "quorum", NodeName: d.colo(), Discard: unmap,
		ReadPattern: "fifo", VoteThreshold: 1, Children: []string{child},
	}
}

// PrimaryArgs returns QEMU's -blockdev arguments for a VM that starts alone.
// The disks are ready to be protected later.
func PrimaryArgs(disks []Disk) []string {
	var args []string
	for _, d := range disks {
		args = append(args, arg("-blockdev", parentNode(d), topNode(d, d.parent()))...)
	}
	return args
}

// StandbyArgs returns QEMU's -blockdev arguments for a standby, whose overlays
// were made by CreateOverlays in overlayDir.
func StandbyArgs(disks []Disk, overlayDir string) []string {
	var args []string
	for _, d := range disks {
		active, hidden := overlayPaths(overlayDir, d)
		args = append(args, arg("-blockdev",
			parentNode(d),
			overlayNode(d.hidden(), d.hiddenFile(), hidden, d.parent()),
			overlayNode(d.active(), d.activeFile(), active, d.hidden()),
			// The top has to be named though it is defined later: the driver
			// looks it up when COLO starts.
			replicationNode{Driver: "replication", NodeName: d.childs(), Mode: "secondary", TopID: d.colo(), File: d.active()},
			topNode(d, d.childs()))...)
	}
	return args
}

// DeviceArgs returns QEMU's -device arguments for the disks, the same for a
// primary and a standby. The order of disks decides their PCI addresses, so it
// must be the same on both nodes.
func DeviceArgs(disks []Disk) []string {
	var args []string
	for _, d := range disks {
		args = append(args, arg("-device", device{Driver: "virtio-blk-pci", ID: d.device(), Drive: d.colo(), Serial: d.Serial})...)
	}
	return args
}

func arg(option string, values ...any) []string {
	var args []string
	for _, v := range values {
		b, err := json.Marshal(v)
		if err != nil {
			panic(err) // structs of strings, numbers and bools can't fail
		}
		args = append(args, option, string(b))
	}
	return args
}

func overlayPaths(dir string, d Disk) (active, hidden string) {
	return filepath.Join(dir, d.Name+".active.qcow2"), filepath.Join(dir, d.Name+".hidden.qcow2")
}

// Address is where a standby exports its disks.
type Address struct {
	Host     string // of the link; never a wildcard
	Port     int
	MPTCP    bool
	TLSCreds string // id of a tls-creds object in this QEMU; no TLS if empty
}

func (a Address) inet() qmp.InetAddr { return qmp.InetAddr{Host: a.Host, Port: a.Port, MPTCP: a.MPTCP} }

// childNode is the peer's disk under the quorum.
func childNode(d Disk, to Address, openTimeout int) nbdNode {
	return nbdNode{
		Driver: "nbd", NodeName: d.nbd(), Server: to.inet().Flat(), Export: d.Name,
		TLSCreds: to.TLSCreds, OpenTimeout: openTimeout, Discard: unmap,
	}
}

// targetNode is the peer's disk while it is made equal. Blocks of zeroes become
// a request without data, and a hole in the peer's image.
func targetNode(d Disk, to Address, openTimeout int) nbdNode {
	n := childNode(d, to, openTimeout)
	n.NodeName, n.DetectZeroes = d.target(), unmap
	return n
}

// mirrorJob copies everything and keeps the copy equal until it is cancelled.
// It reads through the quorum, so that it sees what the guest sees also on a
// former secondary. It stays after its end, to be asked for its error.
func mirrorJob(d Disk, speed int64) qmp.BlockdevMirror {
	return qmp.BlockdevMirror{
		JobID: d.job(), Device: d.colo(), Target: d.target(), Sync: "full", Speed: speed,
		OnSourceError: "report", OnTargetError: "report", AutoDismiss: new(bool),
	}
}

// backupJob has what qmp.BlockdevBackup doesn't. A backup intercepts the
// guest's writes and copies the old data first; break-snapshot says that the
// job shall fail when that can't be done, and not the guest's write.
type backupJob struct {
	qmp.BlockdevBackup
	OnCBWError string `json:"on-cbw-error,omitempty"`
}

// passJob copies what the bitmap Pass says. The bitmap is ours to clear.
func passJob(d Disk, speed int64) backupJob {
	return backupJob{
		BlockdevBackup: qmp.BlockdevBackup{
			JobID: d.job(), Device: d.parent(), Target: d.target(), Sync: "bitmap",
			Bitmap: passBitmap, BitmapMode: "never", Speed: speed,
			OnSourceError: "report", OnTargetError: "report", AutoDismiss: new(bool),
		},
		OnCBWError: "break-snapshot",
	}
}

package colo

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/coloctl/coloctl/blockrepl"
)

// A backup is a folder: a qcow2 image for each disk, and a file that says what it is. One that is based on another one needs that one's folder
// where it was.

// manifestName is the file; a folder without it is no backup.
const manifestName = "backup.yaml"

// Manifest says what a backup is.
type Manifest struct {
	VM         string    `yaml:"vm" json:"vm"`
	Node       string    `yaml:"node" json:"node"` // that made it
	ID         string    `yaml:"id" json:"id"`
	Time       time.Time `yaml:"time" json:"time"` // from when the disks are, at the latest
	Generation uint64    `yaml:"generation" json:"generation"`
	Since      string    `yaml:"since,omitempty" json:"since,omitempty"` // folder of the backup that it is based on, relative to this one
	Bytes      int64     `yaml:"bytes" json:"bytes"`                     // copied
	Spec       string    `yaml:"spec" json:"spec"`
}

// BackupOptions tunes Backup.
type BackupOptions struct {
	Dir string `json:"dir,omitempty"` // of the backup, absolute, on this node; it is made
	// Server is an NBD server that is copied to instead: nbd://HOST[:PORT][/PREFIX] or nbd+unix:///[PREFIX]?socket=PATH, see [blockrepl.ParseBackupServer].
	Server string `json:"server,omitempty"`
	Since  string `json:"since,omitempty"` // folder of an earlier backup by this node: only what was written since is copied
	Limit  int64  `json:"limit,omitempty"` // bytes a second for each disk; 0 is none
}

// ErrBackupRuns is returned for what can't be done while a backup of the VM is made.
var ErrBackupRuns = errors.New("a backup of it is being made")

// Backup copies all disks of a VM that runs here, protected or alone, as they are at one moment, as a crash would leave them. The guest goes on
// and stays protected. Nothing is left after an error, but for what an NBD server has been given.
func (n *Node) Backup(ctx context.Context, vm string, o BackupOptions) (_ Manifest, err error) {
	m, c, done, err := n.beginBackup(vm, "")
	if err != nil {
		return Manifest{}, err
	}
	defer done()
	rec, spec := m.info()
	out := Manifest{VM: vm, Node: n.cfg.Name, ID: strings.ToLower(rand.Text()), Generation: rec.Generation, Spec: string(rec.Spec)}
	if o.Server != "" {
		out.ID = ""
		return n.backupToServer(ctx, m, c, o, out)
	}
	since := ""
	if o.Since != "" {
		base, err := baseOf(vm, o.Since)
		if err != nil {
			return Manifest{}, err
		}
		since = base.ID
		if out.Since, err = filepath.Rel(o.Dir, o.Since); err != nil {
			return Manifest{}, err
		}
	}
	if err := makeFolder(o.Dir); err != nil {
		return Manifest{}, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(o.Dir))
		}
	}()
	targets := map[string]string{}
	for _, d := range spec.mirrored() {
		targets[d.Name] = filepath.Join(o.Dir, d.Name+".qcow2")
		base := ""
		if since != "" {
			base = filepath.Join(o.Since, d.Name+".qcow2")
		}
		if err := n.images().CreateBackup(ctx, targets[d.Name], int64(d.Size), base); err != nil {
			return Manifest{}, err
		}
	}
	out.Time = time.Now().UTC()
	err = c.Backup(ctx, blockrepl.BackupOptions{ID: out.ID, Since: since, Targets: targets, Speed: o.Limit, OnLeft: m.backupLeft, OnProgress: func(done, total int64) {
		out.Bytes = total
		m.tellBackup("making a backup", done, total)
	}})
	if err != nil {
		if errors.Is(err, blockrepl.ErrNoBitmap) {
			err = fmt.Errorf("%w: the VM was started or has failed over since, or a newer backup was made: make one without --since", err)
		}
		return Manifest{}, err
	}
	text, err := yaml.Marshal(out)
	if err == nil {
		err = os.WriteFile(filepath.Join(o.Dir, manifestName), text, 0o600)
	}
	if err == nil {
		err = flushFolder(o.Dir)
	}
	m.emit(Event{Kind: "backup", State: m.State(), Text: fmt.Sprintf("%d bytes to %s", out.Bytes, o.Dir), Fields: map[string]any{"dir": o.Dir, "bytes": out.Bytes}})
	return out, err
}

// beginBackup keeps away what would change the VM's disks, or take them for itself, until done is called: resyncs of a VM that runs here, and everything of
// one that is stopped. A stopped one is taken for its current half of a disk only, and comes without a copy.
func (n *Node) beginBackup(vm, disk string) (m *machine, c Copy, done func(), err error) {
	if m, err = n.machine(vm); err != nil {
		return nil, nil, nil, err
	}
	if !m.backup.CompareAndSwap(false, true) {
		return nil, nil, nil, fmt.Errorf("%s: %w", vm, ErrBackupRuns)
	}
	done = func() { m.backup.Store(false) }
	if c, err = m.copyable(disk); err != nil { // a plan that begins after this look finds the mark
		done()
		return nil, nil, nil, err
	}
	return m, c, done, nil
}

// copyable returns the copy that runs here, none where the VM rests and its half of a disk has everything, and an error where there is nothing to be copied.
func (m *machine) copyable(disk string) (Copy, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	rests := m.state == Stopped && m.plan == nil && m.copy == nil
	half := m.rec.Disks[disk]
	whole := disk != "" && (half.InSync || m.rec.Generation == 0)
	if (m.state == Solo || m.state == Protected) && m.copy != nil || rests && whole {
		return m.copy, nil
	}
	return nil, &UnexpectedEventError{VM: m.name, State: m.state, Event: "backup"}
}

// CheckBackup tells why Backup would be refused now, or would hardly have room where it copies all, and copies nothing.
func (n *Node) CheckBackup(ctx context.Context, vm string, o BackupOptions) error {
	m, err := n.machine(vm)
	if err != nil {
		return err
	}
	if err := m.noBackup(); err != nil {
		return err
	}
	if _, err := m.copyable(""); err != nil {
		return err
	}
	if o.Server != "" {
		return n.checkBackupServer(ctx, m, o)
	}
	if _, err := baseOf(vm, o.Since); err != nil {
		return err
	}
	if !filepath.IsAbs(o.Dir) {
		return fmt.Errorf("folder %q: expected an absolute path on the node", o.Dir)
	}
	if err := newFile(o.Dir); err != nil || o.Since != "" {
		return err
	}
	c := copies{}
	_, spec := m.info()
	for _, d := range spec.disks(n.cfg.StorageDir) {
		c.add(d.Path, o.Dir)
	}
	return c.fit()
}

// baseOf reads the backup of a VM that another one is to be based on; nothing if that is to be based on none.
func baseOf(vm, dir string) (base Manifest, err error) {
	if dir == "" {
		return base, nil
	}
	if base, err = ReadManifest(dir); err == nil && base.VM != vm {
		err = fmt.Errorf("%s is a backup of %s, not of %s", dir, base.VM, vm)
	}
	return base, err
}

// newFile is an error where a file or folder can't be made: it is there, or its folder is not.
func newFile(path string) error {
	if _, err := os.Lstat(path); err == nil {
		return fmt.Errorf("%s: %w", path, os.ErrExist)
	}
	_, err := os.Stat(filepath.Dir(path))
	return err
}

// noBackup is an error while a backup is made.
func (m *machine) noBackup() error {
	if m.backup.Load() {
		return fmt.Errorf("%s: %w: again when that has ended", m.name, ErrBackupRuns)
	}
	return nil
}

// backupLeft says that a backup which is over still holds something: until that has gone no other one begins, nor a resync.
func (m *machine) backupLeft(err error) {
	m.log.Warn("a backup could not be ended; it is tried again", "err", err)
}

func (m *machine) tellBackup(what string, done, total int64) {
	m.emit(Event{Kind: "progress", State: m.State(), Text: what, Fields: map[string]any{"done": done, "total": total, "rate": int64(0)}})
}

func (n *Node) images() blockrepl.Images { return blockrepl.Images{QEMUImg: n.cfg.QEMUImg} }

// makeFolder makes a folder in one that is there.
func makeFolder(dir string) error {
	if !filepath.IsAbs(dir) {
		return fmt.Errorf("folder %q: expected an absolute path on the node", dir)
	}
	return os.Mkdir(dir, 0o700)
}

// flushFolder makes a folder's files durable, and their names.
func flushFolder(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	names := []string{"", ".."}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	var errs []error
	for _, name := range names {
		f, err := os.Open(filepath.Join(dir, name))
		if err == nil {
			err = errors.Join(f.Sync(), f.Close())
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// ReadManifest reads what a backup is.
func ReadManifest(dir string) (m Manifest, err error) {
	text, err := os.ReadFile(filepath.Join(dir, manifestName))
	if err != nil {
		return m, fmt.Errorf("%s is no backup: %w", dir, err)
	}
	file := filepath.Join(dir, manifestName)
	if err := yaml.Unmarshal(text, &m); err != nil {
		return m, yamlError(err, file, "backup")
	}
	if m.VM == "" || m.ID == "" || m.Spec == "" {
		return m, fmt.Errorf("%s: something is missing in it", file)
	}
	return m, nil
}

// RestoreOptions tunes Restore.
type RestoreOptions struct {
	Dir  string `json:"dir"`            // of the backup, on this node
	Name string `json:"name,omitempty"` // of the new VM; that of the old one when empty
}

// Restore makes a VM of a backup, with images of its own in the storage folder. It is not started. Under another name its NICs get other MAC
// addresses, so that both can run. Nothing is left after an error.
func (n *Node) Restore(ctx context.Context, o RestoreOptions) (_ *Spec, err error) {
	s, err := n.restored(ctx, o)
	if err != nil {
		return nil, err
	}
	var made []string
	defer func() {
		if err != nil {
			for _, path := range made {
				err = errors.Join(err, os.Remove(path))
			}
		}
	}()
	for _, d := range s.disks(n.cfg.StorageDir) {
		if err := n.images().Convert(ctx, filepath.Join(o.Dir, d.Name+".qcow2"), blockrepl.QCOW2, d); err != nil {
			return nil, err
		}
		made = append(made, d.Path)
	}
	return s, n.Create(ctx, s)
}

// CheckRestore tells why Restore would be refused now, or would hardly have room, and makes nothing.
func (n *Node) CheckRestore(ctx context.Context, o RestoreOptions) error {
	s, err := n.restored(ctx, o)
	if err != nil {
		return err
	}
	c := copies{}
	for _, d := range s.disks(n.cfg.StorageDir) {
		from := filepath.Join(o.Dir, d.Name+".qcow2")
		if _, err := os.Stat(from); err != nil {
			return err
		}
		if err := n.images().Creatable(d); err != nil {
			return err
		}
		c.add(from, d.Path)
	}
	return c.fit()
}

// restored is the spec of a VM that is to be made of a backup, if this node can have it.
func (n *Node) restored(ctx context.Context, o RestoreOptions) (*Spec, error) {
	m, err := ReadManifest(o.Dir)
	if err != nil {
		return nil, err
	}
	s, err := ParseSpec([]byte(m.Spec), filepath.Join(o.Dir, manifestName))
	if err != nil {
		return nil, err
	}
	if o.Name != "" && o.Name != s.Name {
		s.Name = o.Name
		for i := range s.NICs {
			s.NICs[i].MAC = newMAC().String()
		}
	}
	for i, d := range s.Disks {
		if d.ReadOnly {
			continue // as it is
		}
		s.Disks[i].File = fmt.Sprintf("%s-%s.%s", s.Name, d.Name, d.Format)
	}
	if err := s.Validate(); err != nil {
		return nil, err
	}
	release, err := n.place(ctx, s)
	if err != nil {
		return nil, err
	}
	release()
	return s, nil
}

// newMAC is a random address of those that nobody else gives out, in QEMU's range.
func newMAC() net.HardwareAddr {
	mac := net.HardwareAddr{0x52, 0x54, 0, 0, 0, 0}
	_, _ = rand.Read(mac[3:])
	return mac
}

// ExportOptions tunes Export.
type ExportOptions struct {
	Disk   string `json:"disk"`
	File   string `json:"file"`             // absolute, on this node; it is made
	Format string `json:"format,omitempty"` // qcow2 (default) or raw
}

// Export copies one disk of a VM to a file of its own, as it is at one moment when the VM runs here. Nothing is left after an error.
func (n *Node) Export(ctx context.Context, vm string, o ExportOptions) (err error) {
	m, err := n.machine(vm)
	if err != nil {
		return err
	}
	disk, to, err := m.exported(o)
	if err != nil {
		return err
	}
	m, c, done, err := n.beginBackup(vm, o.Disk)
	if err != nil {
		return err
	}
	defer done()
	if c == nil {
		return n.images().Convert(ctx, disk.Path, disk.Format, to)
	}
	if _, err := os.Lstat(o.File); err == nil {
		return fmt.Errorf("%s: %w", o.File, os.ErrExist)
	}
	taken := o.File + ".part"
	if err := n.images().CreateBackup(ctx, taken, disk.Size, ""); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(taken)) }()
	err = c.Backup(ctx, blockrepl.BackupOptions{Targets: map[string]string{o.Disk: taken}, OnLeft: m.backupLeft, OnProgress: func(done, total int64) {
		m.tellBackup("exporting disk "+o.Disk, done, total)
	}})
	if err != nil {
		return err
	}
	return n.images().Convert(ctx, taken, blockrepl.QCOW2, to)
}

// CheckExport tells why Export would be refused now, or would hardly have room, and copies nothing.
func (n *Node) CheckExport(vm string, o ExportOptions) error {
	m, err := n.machine(vm)
	if err != nil {
		return err
	}
	disk, to, err := m.exported(o)
	if err != nil {
		return err
	}
	if err := m.noBackup(); err != nil {
		return err
	}
	if _, err := m.copyable(o.Disk); err != nil {
		return err
	}
	if err := newFile(o.File); err != nil {
		return err
	}
	c := copies{}
	c.add(disk.Path, to.Path)
	return c.fit()
}

// exported are a disk of the VM and the file that it is to be copied to.
func (m *machine) exported(o ExportOptions) (disk, to blockrepl.Disk, err error) {
	_, spec := m.info()
	if _, err = spec.mirroredDisk(o.Disk); err != nil {
		return disk, to, err
	}
	setDefault(&o.Format, blockrepl.QCOW2)
	switch {
	case o.Format != blockrepl.QCOW2 && o.Format != blockrepl.Raw:
		return disk, to, fmt.Errorf("format %q: expected qcow2 or raw", o.Format)
	case !filepath.IsAbs(o.File):
		return disk, to, fmt.Errorf("file %q: expected an absolute path on the node", o.File)
	}
	for _, d := range spec.disks(m.n.cfg.StorageDir) {
		if d.Name == o.Disk {
			disk = d
		}
	}
	return disk, blockrepl.Disk{Name: o.Disk, Path: o.File, Format: o.Format, Size: disk.Size}, nil
}

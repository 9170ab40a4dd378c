package guest

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/cavaliergopher/cpio"
	"github.com/google/go-cmp/cmp"

	"github.com/coloctl/coloctl/internal/qemutest"
)

func TestCommandLine(t *testing.T) {
	got := CommandLine(Network{Addresses: []string{"10.77.0.10/24", "", "10.78.0.10/24"}, Gateway: "10.77.0.1"})
	const want = "console=ttyS0 quiet panic=-1 i8042.noaux i8042.nokbd tsc=reliable net.ifnames=0 colo.ip=10.77.0.10/24 colo.ip2=10.78.0.10/24 colo.gw=10.77.0.1"
	if got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestImageHasInitAndModulesInOrder(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "program")
	if err := os.WriteFile(program, []byte("#!"), 0o755); err != nil {
		t.Fatal(err)
	}
	o := ImageOptions{InitBinary: program, ModulesDir: qemutest.Modules(t), CacheDir: filepath.Join(dir, "cache")}
	path, err := Image(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	files := unpack(t, path)
	if files["init"] != "#!" {
		t.Errorf("init is %q", files["init"])
	}
	order := strings.Fields(files["modules/order"])
	at := map[string]int{}
	for i, name := range order {
		at[name] = i
		if !strings.HasPrefix(files["modules/"+name], "\x7fELF") {
			t.Errorf("%s is not an uncompressed module", name)
		}
	}
	for _, pair := range [][2]string{{"failover.ko", "net_failover.ko"}, {"net_failover.ko", "virtio_net.ko"}} {
		before, ok1 := at[pair[0]]
		after, ok2 := at[pair[1]]
		if !ok1 || !ok2 || before > after {
			t.Errorf("%v must be there in that order: %v", pair, order)
		}
	}

	// The same again, by many at once; another program makes another image.
	var wg sync.WaitGroup
	paths := make([]string, 4)
	errs := make([]error, 4)
	for i := range paths {
		wg.Go(func() { paths[i], errs[i] = Image(t.Context(), o) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	for _, p := range paths {
		if p != path {
			t.Errorf("%s and %s for the same", p, path)
		}
	}
	if err := os.WriteFile(program, []byte("other"), 0o755); err != nil {
		t.Fatal(err)
	}
	if other, err := Image(t.Context(), o); err != nil || other == path {
		t.Errorf("another program: %s, %v", other, err)
	}
	left, err := filepath.Glob(filepath.Join(dir, "cache", ".*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left over: %v %v", left, err)
	}
}

func unpack(t *testing.T, path string) map[string]string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for r := cpio.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		files[h.Name] = string(data)
	}
}

func TestArchiveIsTheSameForTheSame(t *testing.T) {
	var a, b bytes.Buffer
	for _, w := range []*bytes.Buffer{&a, &b} {
		if err := writeArchive(w, []byte("p"), []module{{"m", []byte("d")}}); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(a.Bytes(), b.Bytes()) {
		t.Error("differs")
	}
}

func TestModuleErrors(t *testing.T) {
	dir := t.TempDir()
	if _, err := openModules(dir); err == nil {
		t.Error("an empty folder is a kernel's")
	}
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	write("modules.builtin", "kernel/fs/ext4/ext4.ko\nkernel/a/virtio-rng.ko\n")
	write("kernel/bad.ko", "not a module")
	write("kernel/bad2.ko.xz", "not compressed")
	write("kernel/new.ko.zst", "")
	s, err := openModules(dir)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := s.resolve("ext4", "virtio_rng"); err != nil || len(got) != 0 {
		t.Errorf("built in: %v, %v", got, err)
	}
	if _, err := s.resolve("ext4", "none"); !errors.Is(err, ErrNoModule) {
		t.Errorf("missing: %v", err)
	}
	for _, name := range []string{"bad", "bad2", "new"} {
		if _, err := s.resolve(name); err == nil {
			t.Errorf("%s was read", name)
		}
	}
}

func TestInitPlaces(t *testing.T) {
	dir := t.TempDir()
	given := filepath.Join(dir, "given")
	t.Setenv(InitVariable, given)
	if _, err := Init(t.Context(), dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing file in the variable: %v", err)
	}
	if err := os.WriteFile(given, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	if got, err := Init(t.Context(), dir); err != nil || got != given {
		t.Errorf("%q, %v", got, err)
	}
	t.Setenv(InitVariable, "")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Init(ctx, dir); !errors.Is(err, context.Canceled) {
		t.Errorf("a build that was broken off: %v", err)
	}
	left, err := filepath.Glob(filepath.Join(dir, ".*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left over: %v %v", left, err)
	}
}

func TestFormatDisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	if err := FormatDisk(t.Context(), path, 16<<20); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Size() != 16<<20 {
		t.Fatal(info, err)
	}
	if err := FormatDisk(t.Context(), path, 16<<20); !errors.Is(err, os.ErrExist) {
		t.Errorf("an existing file: %v", err)
	}
	small := path + "2"
	if err := FormatDisk(t.Context(), small, 1000); err == nil {
		t.Error("1000 bytes hold a file system")
	}
	if diff := cmp.Diff(false, exists(small)); diff != "" {
		t.Error("the file stayed after the error")
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

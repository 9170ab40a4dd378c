package guest

import (
	"bufio"
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/ulikunitz/xz"
)

// ErrNoModule is returned when a kernel has a needed module neither as a file
// nor built in.
var ErrNoModule = errors.New("the kernel has no such module")

// module is one kernel module, decompressed.
type module struct {
	name string
	data []byte
}

// moduleSet finds the modules of one kernel. A package that was only unpacked
// has no modules.dep, which depmod writes at installation; so dependencies are
// read from the modules themselves.
type moduleSet struct {
	files   map[string]string // by module name
	builtin map[string]bool
}

// moduleName returns the name of a module by its file: kernel code writes both
// - and _ for the same.
func moduleName(path string) string {
	name, _, _ := strings.Cut(filepath.Base(path), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

func openModules(dir string) (*moduleSet, error) {
	s := &moduleSet{files: map[string]string{}, builtin: map[string]bool{}}
	list, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil {
		return nil, err
	}
	lines := bufio.NewScanner(bytes.NewReader(list))
	for lines.Scan() {
		s.builtin[moduleName(lines.Text())] = true
	}
	err = filepath.WalkDir(filepath.Join(dir, "kernel"), func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.Type().IsRegular() && strings.Contains(entry.Name(), ".ko") {
			s.files[moduleName(path)] = path
		}
		return err
	})
	return s, err
}

// resolve returns the named modules and all they need, each after what it
// needs.
func (s *moduleSet) resolve(names ...string) ([]module, error) {
	var order []module
	done := map[string]bool{}
	var add func(name string) error
	add = func(name string) error {
		name = strings.ReplaceAll(name, "-", "_")
		if done[name] || s.builtin[name] {
			return nil
		}
		done[name] = true // before its needs, so that a circle ends
		path, ok := s.files[name]
		if !ok {
			return fmt.Errorf("%w: %s", ErrNoModule, name)
		}
		data, err := readModule(path)
		if err != nil {
			return err
		}
		needs, err := moduleNeeds(data)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		for _, need := range needs {
			if err := add(need); err != nil {
				return fmt.Errorf("%w, needed by %s", err, name)
			}
		}
		order = append(order, module{name, data})
		return nil
	}
	for _, name := range names {
		if err := add(name); err != nil {
			return nil, err
		}
	}
	return order, nil
}

func readModule(path string) ([]byte, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	switch filepath.Ext(path) {
	case ".ko":
		return data, nil
	case ".xz":
		r, err := xz.NewReader(bytes.NewReader(data))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		return io.ReadAll(r)
	default:
		return nil, fmt.Errorf("%s: compression not known", path)
	}
}

// moduleNeeds returns the "depends" of a module's .modinfo section: strings
// KEY=VALUE, each ended by a zero byte.
func moduleNeeds(data []byte) ([]string, error) {
	file, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	section := file.Section(".modinfo")
	if section == nil {
		return nil, errors.New("no .modinfo section")
	}
	info, err := section.Data()
	if err != nil {
		return nil, err
	}
	for entry := range strings.SplitSeq(string(info), "\x00") {
		if list, ok := strings.CutPrefix(entry, "depends="); ok && list != "" {
			return strings.Split(list, ","), nil
		}
	}
	return nil, nil
}

package remaster

import (
	"errors"
	"io/fs"
	"slices"

	"remaster/pkg/grub"
	"remaster/pkg/partition"
	"remaster/pkg/rootfs"
	"remaster/pkg/systemd"
)

// Inspection is what is known of an image without changing it.
type Inspection struct {
	Format    Format            `json:"format"`
	FileSize  int64             `json:"fileSize"` // bytes of the container
	Size      int64             `json:"size"`     // bytes of the guest's disk
	Container any               `json:"container,omitempty"`
	Table     partition.Kind    `json:"table"`
	Sector    int64             `json:"sectorSize"`
	Parts     []PartDoc         `json:"partitions"`
	OS        map[string]string `json:"osRelease"`
	ImageID   string            `json:"imageID,omitempty"` // of /etc/image-id
	Kernels   []string          `json:"kernels"`           // that have modules
	Boot      []BootDoc         `json:"boot"`
	// Containerd is the state of containerd.service as systemctl is-enabled says it,
	// or "not-found".
	Containerd systemd.State `json:"containerd"`
	Notes      []string      `json:"notes"`
}

// PartDoc is a partition and what lies on it.
type PartDoc struct {
	Number   int      `json:"number"`
	Start    int64    `json:"start"` // bytes
	Size     int64    `json:"size"`  // bytes
	Type     string   `json:"type"`
	Name     string   `json:"name,omitempty"`
	FS       string   `json:"fs,omitempty"`
	UUID     string   `json:"fsUUID,omitempty"`
	Label    string   `json:"fsLabel,omitempty"`
	Free     int64    `json:"fsFree,omitempty"` // bytes
	Features []string `json:"fsFeatures,omitempty"`
	Mount    string   `json:"mountedAt,omitempty"`
	Error    string   `json:"error,omitempty"`
}

// Inspect looks at the image and its guest. An image without a guest that can be opened
// is an error; what is merely odd in the guest becomes a note.
func (im *Image) Inspect() (_ *Inspection, err error) {
	g, err := im.OpenGuest()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, g.Close()) }()
	t, err := partition.Read(im.Disk)
	if err != nil {
		return nil, err
	}
	d := &Inspection{
		Format: im.Format, FileSize: im.Blob.Size(), Size: im.Disk.Size(), Container: im.Info,
		Table: t.Kind, Sector: t.SectorSize, Kernels: []string{}, Boot: []BootDoc{},
		Notes: slices.Concat([]string{}, t.Notes, g.Notes),
	}
	for i := range g.Parts {
		d.Parts = append(d.Parts, describePart(&g.Parts[i]))
	}
	if d.OS, err = rootfs.OSRelease(g); err != nil {
		d.note(err)
	}
	if data, err := rootfs.ReadFile(g, "/etc/image-id"); err == nil {
		d.ImageID = rootfs.ParseEnvFile(data)["image_id"]
	}
	entries, err := g.ReadDir("/usr/lib/modules")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		d.note(err)
	}
	for _, e := range entries {
		d.Kernels = append(d.Kernels, e.Name)
	}
	if boot, err := grub.Resolve(g); err != nil {
		d.note(err)
	} else {
		d.Boot = bootDocs(nil, boot)
		d.Notes = append(d.Notes, boot.Notes...)
	}
	if d.Containerd, err = systemd.IsEnabled(g, "containerd.service"); err != nil {
		d.note(err)
	}
	return d, nil
}

func (d *Inspection) note(err error) { d.Notes = append(d.Notes, err.Error()) }

func describePart(p *rootfs.Part) PartDoc {
	_, free, err := p.Space()
	doc := PartDoc{
		Number: p.Number, Start: p.Range.Off, Size: p.Range.Len, Type: p.Type, Name: p.Name,
		FS: p.FS, UUID: p.FSUUID, Label: p.FSLabel, Features: p.Features, Mount: p.MountedAt, Free: free,
	}
	if err = errors.Join(p.Err, err); err != nil {
		doc.Error = err.Error()
	}
	return doc
}

//! The kinds of boards that an image can be for.

/// A kind of board.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Board {
    /// Raspberry Pi 3, 4 and Zero 2 W, with 64 bits
    Rpi,
    /// 64-bit ARM with UEFI, or with U-Boot
    GenericArm64,
    /// 32-bit ARM (ARMv7 with FPU) with U-Boot
    GenericArmhf,
    /// PCs, with UEFI
    GenericAmd64,
}

/// What the packages of a distribution, images of containers and binaries call a processor.
#[derive(Debug, PartialEq, Eq)]
pub struct Machine {
    /// As in `limpet-agent-aarch64`.
    pub name: &'static str,
    /// As Debian calls it.
    pub debian: &'static str,
    /// As OCI images call it.
    pub platform: &'static str,
    /// `e_machine` of an ELF file.
    pub elf: u16,
}

/// All machines that there are agents for.
pub const MACHINES: [Machine; 3] = [AARCH64, ARMV7, X86_64];

const AARCH64: Machine =
    Machine { name: "aarch64", debian: "arm64", platform: "linux/arm64/v8", elf: 183 };
const ARMV7: Machine =
    Machine { name: "armv7", debian: "armhf", platform: "linux/arm/v7", elf: 40 };
const X86_64: Machine =
    Machine { name: "x86_64", debian: "amd64", platform: "linux/amd64", elf: 62 };

impl Board {
    /// Its processor.
    pub const fn machine(self) -> Machine {
        match self {
            Self::Rpi | Self::GenericArm64 => AARCH64,
            Self::GenericArmhf => ARMV7,
            Self::GenericAmd64 => X86_64,
        }
    }

    /// The package that depends on the kernel's latest package.
    pub(crate) const fn kernel(self) -> &'static str {
        match self {
            Self::Rpi | Self::GenericArm64 => "linux-image-arm64",
            Self::GenericArmhf => "linux-image-armmp",
            Self::GenericAmd64 => "linux-image-amd64",
        }
    }

    /// systemd-boot in its package, and the name by which UEFI looks for it.
    pub(crate) const fn uefi(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Rpi | Self::GenericArm64 => Some(("systemd-bootaa64.efi", "BOOTAA64.EFI")),
            Self::GenericArmhf => None,
            Self::GenericAmd64 => Some(("systemd-bootx64.efi", "BOOTX64.EFI")),
        }
    }

    /// Consoles of the kernel; those that a board does not have are passed over, and the last that it
    /// has is `/dev/console`.
    pub(crate) const fn consoles(self) -> &'static [&'static str] {
        match self {
            // The UART on its header; the other one is Bluetooth's.
            Self::Rpi => &["tty0", "ttyS1,115200"],
            Self::GenericArm64 => &["tty0", "ttyS0,115200", "ttyAMA0,115200"],
            Self::GenericArmhf => {
                &["tty0", "ttyS2,115200", "ttymxc0,115200", "ttyS0,115200", "ttyAMA0,115200"]
            }
            Self::GenericAmd64 => &["tty0", "ttyS0,115200"],
        }
    }

    /// Which device trees go onto the boot partition, below the folder of the kernel's package.
    pub(crate) const fn device_trees(self) -> DeviceTrees {
        match self {
            Self::Rpi => DeviceTrees::Raspberry,
            Self::GenericArm64 | Self::GenericArmhf => DeviceTrees::All,
            Self::GenericAmd64 => DeviceTrees::None,
        }
    }
}

/// Which descriptions of hardware a board's loader is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DeviceTrees {
    /// It describes itself.
    None,
    /// In the partition's root, where the Raspberry Pi's firmware looks.
    Raspberry,
    /// In `dtbs/`, where U-Boot looks.
    All,
}

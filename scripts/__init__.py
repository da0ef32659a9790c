# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""The names that configurations and the command line use; everything behind them lives in the package ``bundle``."""

from bundle.cohort.judge import JudgePathd as JudgePathd
from bundle.cohort.png import SavePNGd as SavePNGd
from bundle.data import check_data as check_data
from bundle.data import open_dataset as open_dataset
from bundle.data import print_shortcut as print_shortcut
from bundle.gate.gate import Gate as Gate
from bundle.latent.pairs import PairBlocks as PairBlocks
from bundle.latent.prior import LatentPrior as LatentPrior
from bundle.latent.sampling import labelled_latents as labelled_latents
from bundle.networks.model_set import load_models as load_models
from bundle.networks.projected import ProjectedDiscriminator as ProjectedDiscriminator
from bundle.networks.stylegan2 import Discriminator as Discriminator
from bundle.networks.stylegan2 import Generator as Generator
from bundle.tracking import Tracking as Tracking
from bundle.tracking import tracking_uri as tracking_uri
from bundle.training.augment import AdaptiveAugment as AdaptiveAugment
from bundle.training.discriminators import new_discriminator as new_discriminator
from bundle.training.guides import GuideTrainer as GuideTrainer
from bundle.training.guides import new_classifier as new_classifier
from bundle.training.handlers import BestGenerator as BestGenerator
from bundle.training.handlers import GanProgress as GanProgress
from bundle.training.handlers import SampleGrid as SampleGrid
from bundle.training.handlers import TrainingCheckpoint as TrainingCheckpoint
from bundle.training.info import weights_info as weights_info
from bundle.training.init_from import default_resolution as default_resolution
from bundle.training.init_from import initialise_gan as initialise_gan
from bundle.training.network_trainer import AutocastInferer as AutocastInferer
from bundle.training.stylegan2_trainer import StyleGAN2Trainer as StyleGAN2Trainer
from bundle.training.stylegan2_trainer import balanced_loader as balanced_loader
from bundle.training.stylegan2_trainer import default_r1_gamma as default_r1_gamma
from bundle.walk.inferer import PlanWalkInferer as PlanWalkInferer
from scripts.generation import GenerationProgress as GenerationProgress
from scripts.generation import default_output_dir as default_output_dir
from scripts.generation import generate as generate
from scripts.generation import generation_settings as generation_settings
from scripts.generation import open_training_data as open_training_data
from scripts.generation import plan_ledger as plan_ledger
from scripts.generation import prepare_pairs as prepare_pairs
from scripts.guides import print_recognition as print_recognition
from scripts.guides import train_guides as train_guides
from scripts.options import check_options as check_options
from scripts.score import score_models as score_models
from scripts.training import train_gan as train_gan
